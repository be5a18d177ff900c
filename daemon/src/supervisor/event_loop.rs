//! The loop: wait, apply what happened, apply what is due.
//!
//! Nothing here knows more than who an event belongs to. Exits are applied before records and hang-ups
//! of the same turn wherever that matters by the handlers themselves, which read what a worker said
//! before it went.

use super::poller::{Ready, Token};
use super::{Phase, Supervisor, Timer};

impl Supervisor {
    /// Runs until the daemon is over.
    ///
    /// # Errors
    /// The kernel's, from `epoll_wait`: a bug of ours.
    pub(super) fn turn_until_over(&mut self) -> nix::Result<()> {
        let mut events = Vec::new();
        while self.phase != Phase::Over {
            self.turn(&mut events)?;
        }
        Ok(())
    }

    /// One turn. Says whether anything happened.
    pub(super) fn turn(&mut self, events: &mut Vec<(Token, Ready)>) -> nix::Result<bool> {
        self.poller.wait(events)?;
        let mut happened = !events.is_empty();
        for (token, ready) in events.drain(..) {
            self.on_event(token, ready);
        }
        while let Some(timer) = self.poller.due() {
            happened = true;
            self.on_timer(timer);
        }
        Ok(happened)
    }

    fn on_event(&mut self, token: Token, ready: Ready) {
        match token {
            Token::AttachListener => self.on_attach_listener(),
            Token::ControlListener => self.on_control_listener(),
            Token::Signals => self.on_signals(),
            Token::Staging => {
                for done in self.stager.take_done() {
                    self.on_staged(done);
                }
            }
            Token::Store => self.on_store(),
            Token::Files => self.on_files(),
            Token::Attach(id) => self.on_attach(id),
            Token::Control(id) => self.on_control(id, ready),
            Token::Worker(id) => self.on_worker(id, ready.write),
            Token::WorkerExit(id) => self.on_worker_exit(id),
            Token::Closed => self.on_closed(),
        }
    }

    fn on_signals(&mut self) {
        let arrived = self.signals.take();
        if arrived.reload {
            self.reload_config();
        }
        if arrived.terminate {
            self.begin_drain("asked by a signal");
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::AttachGrace(id) => self.on_attach_grace(id),
            Timer::Load(worker) => self.on_load_overdue(worker),
            Timer::Swap { model, to } => self.on_swap_overdue(model, to),
            Timer::Resume(model) => self.on_resume(model),
            Timer::Restart { model, deaths } => self.on_restart(model, deaths),
            Timer::Sweep(model) => self.on_sweep(model),
            Timer::Watch => self.on_watch(),
            Timer::Exit(worker) => self.on_exit_overdue(worker),
            Timer::Lingering => self.on_lingering(),
            Timer::Accept => self.on_accept_again(),
            Timer::Shadow(worker) => self.on_shadow_overdue(worker),
            Timer::Drift(number) => self.on_drift_due(number),
            Timer::Settle(model) => self.on_settle(model),
            Timer::Memory => self.on_memory(),
            Timer::Stats(query) => self.finish_stats(query),
            Timer::DrainLook => self.look_whether_drained(),
            Timer::DrainEnd => self.on_drain_end(),
            Timer::Watchdog => self.on_watchdog(),
        }
    }
}
