//! inferd-worker-ort: started by inferd for models whose backend is `ort`; never by hand.

fn main() -> ! {
    inferd_worker::control::run_only(&[&inferd_worker_ort::Ort])
}
