//! inferd-worker-torch: started by inferd for models of backend `torch`; never by hand.

fn main() -> ! {
    inferd_worker::control::run_with(&[&inferd_worker_torch::Torch])
}
