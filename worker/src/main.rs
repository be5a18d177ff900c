//! inferd-worker: started by inferd, one for each model; never by hand.

fn main() -> ! {
    inferd_worker::control::run()
}
