//! The recall thread: gives up what the gateway recalls, and says so. It is neither a reader nor one of the kernel's threads, so
//! that it may wait a little for the kernel and send.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use strongroom_protocol::attr::Node;
use strongroom_protocol::lease::{Recalled, What};
use strongroom_protocol::op::Op;

use super::Shared;
use super::pending::{Pending, Phase};
use super::taking::take_leases;
use crate::lease::Drop;
use crate::opening;
use crate::state::State;
use crate::telling;

/// What the recall thread is to do.
pub(super) enum Task {
    /// The gateway recalls.
    Recall { life: u64, id: u64, stamp: u64, items: Vec<Recalled> },
    /// All leases are lost.
    Lost { life: u64, id: u64, stamp: u64 },
    /// All is given up that a recall named.
    Acknowledge { id: u64 },
    /// All leases are over, and this is what the kernel was told under them.
    Over(Drop),
    /// Somebody waits until all that came before is done.
    Told(mpsc::Sender<()>),
    /// What was answered early before the connections were lost is with the gateway, and so is what is open: there may be leases again.
    TakeLeases { number: u64 },
    /// The mount ends.
    End,
}

/// How often the table is looked at for what has not been used.
const SWEEP: Duration = Duration::from_secs(5);
/// How long the locks of a file are kept here that nobody asks for.
const KEPT: Duration = Duration::from_millis(500);

pub(super) fn run(shared: &Arc<Shared>, tasks: &mpsc::Receiver<Task>) {
    let (mut swept, mut looked) = (Instant::now(), Instant::now());
    loop {
        if looked.elapsed() >= KEPT {
            looked = Instant::now();
            shared.tell_idle();
        }
        match tasks.recv_timeout(KEPT) {
            Ok(Task::Recall { life, id, stamp, items }) => shared.recalled(life, id, stamp, &items),
            Ok(Task::Lost { life, id, stamp }) => shared.leases_lost(life, id, stamp),
            Ok(Task::Acknowledge { id }) => shared.send_unanswered(Op::Recalled { id }, vec![]),
            Ok(Task::Over(mut drop)) => {
                shared.state.give_up_all_pages(&mut drop);
                shared.state.take_back(&drop);
            }
            Ok(Task::Told(waiter)) => drop(waiter),
            Ok(Task::TakeLeases { number }) => {
                let mut taking = shared.taking.lock();
                let senders = taking.over(number);
                // A failure shows on the connection's reader as well.
                senders.iter().for_each(|sender| drop(take_leases(sender)));
                if !senders.is_empty() {
                    shared.core.lock().without_leases = false;
                    shared.sendable.notify_one();
                }
                // Not before: there may be other connections.
                drop(taking);
            }
            Ok(Task::End) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) if swept.elapsed() >= SWEEP => {
                swept = Instant::now();
                shared.sweep();
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
}

impl Shared {
    fn recalled(self: &Arc<Self>, life: u64, id: u64, stamp: u64, items: &[Recalled]) {
        let mut drop = Drop::default();
        let mut told = vec![];
        {
            let grants = self.state.grants.read();
            let mut table = self.state.leases.table();
            if table.life() != life {
                return;
            }
            let now = Instant::now();
            for item in items {
                // Of another contract's grant nothing is known.
                if let Some(node) = grants.from_wire(item.node) {
                    table.recall(stamp, node, &item.what, now, &mut drop);
                    if !matches!(item.what, What::Name(_) | What::Longer(_) | What::Shorter(_)) {
                        told.push(node);
                    }
                }
            }
        }
        self.state.give_up_pages(&mut drop);
        self.acknowledge(drop, told, id);
    }

    fn leases_lost(self: &Arc<Self>, life: u64, id: u64, stamp: u64) {
        let mut drop = {
            let mut table = self.state.leases.table();
            if table.life() != life {
                return;
            }
            let mut drop = table.lost(stamp, Instant::now());
            drop.open = self.state.handles.lock().lazy(&|_| true).iter().map(|file| file.node).collect();
            drop
        };
        self.state.give_up_all_pages(&mut drop);
        self.settings.journal.note("the gateway took all leases back, because an answer was late");
        // Not within the call: what is locked for an argument stays locked until it returns.
        let kept = self.state.locks.lock().kept();
        self.acknowledge(drop, kept, id);
    }

    /// `told`: of the locks of these the gateway is told, if they are kept here.
    fn acknowledge(self: &Arc<Self>, drop: Drop, told: Vec<Node>, id: u64) {
        self.state.take_back_for_others(&drop);
        {
            let mut nodes = self.state.nodes.lock();
            for node in drop.over {
                if !nodes.knows(node) {
                    nodes.never_told(node);
                }
            }
        }
        let lazy: Vec<Node> = {
            let handles = self.state.handles.lock();
            drop.open.into_iter().filter(|node| handles.lazy_of(*node)).collect()
        };
        let written: Vec<Node> =
            drop.write.into_iter().filter(|node| self.state.behind.busy(*node)).collect();
        let kept: Vec<Node> = {
            let kept = self.state.locks.lock().kept();
            told.into_iter().filter(|node| kept.contains(node)).collect()
        };
        if lazy.is_empty() && written.is_empty() && kept.is_empty() {
            return self.send_unanswered(Op::Recalled { id }, vec![]);
        }
        let shared = self.clone();
        let asker = self.clone();
        let submit: opening::Submit = Arc::new(move |call| asker.submit(Pending::new(call)));
        let teller = submit.clone();
        opening::ensure_all(&submit, &self.state, &|node| lazy.contains(&node), move || {
            when_written(&shared.state.clone(), written, move || {
                telling::tell_all(&teller, &shared.state.clone(), kept, false, move || {
                    // Readers never send. The thread is gone only when the mount ends.
                    let _ = shared.recalls.send(Task::Acknowledge { id });
                });
            });
        });
    }

    /// What is not looked at is with the gateway: if this guest is suspended, nobody waits for it in vain.
    fn tell_idle(self: &Arc<Self>) {
        if self.core.lock().phase != Phase::Up {
            return;
        }
        let idle = self.state.locks.lock().idle();
        let asker = self.clone();
        let submit: opening::Submit = Arc::new(move |call| asker.submit(Pending::new(call)));
        telling::tell_all(&submit, &self.state, idle, true, || {});
    }

    fn sweep(&self) {
        let drop = self.state.leases.table().sweep();
        if drop != Drop::default() {
            self.state.take_back(&drop);
        }
    }
}

/// Does `act` once the gateway has all that was written to these files and answered early. Their leases are exclusive no more,
/// so that it does not become more.
fn when_written(state: &Arc<State>, mut nodes: Vec<Node>, act: impl FnOnce() + Send + 'static) {
    let Some(node) = nodes.pop() else { return act() };
    let next = state.clone();
    state.behind.wait(node, 0, Box::new(move |_| when_written(&next, nodes, act)));
}
