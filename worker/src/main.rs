//! inferd-worker: started by inferd, one for each model; never by hand.

fn main() -> std::process::ExitCode {
    inferd_worker::control::run()
}
