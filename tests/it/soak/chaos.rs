//! Faults at random, one after the other, in an order that a seed repeats.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::chance::Chance;
use super::fleet::{Fleet, Part};
use crate::support::receiver::{Answer, Receiver};
use crate::support::s3::{Fault, Operation, S3Server};
use crate::support::servers::Servers;
use crate::support::tell;

/// What can break.
#[derive(Debug, Clone, Copy)]
enum Break {
    Kill(Part),
    Replace(Part),
    Pause(Part),
    CutConnections,
    RefuseConnections,
    CrashDatabase,
    RestartDatabase,
    StoreAway,
    StoreFails,
    StoreFailsOnce,
    ReceiverRefuses,
    ReceiverIsSilent,
}

impl Break {
    /// Those that are likelier stand here more than once.
    const ALL: [Self; 20] = [
        Self::Kill(Part::Worker),
        Self::Kill(Part::Worker),
        Self::Kill(Part::Worker),
        Self::Kill(Part::Scheduler),
        Self::Kill(Part::Api),
        Self::Replace(Part::Worker),
        Self::Replace(Part::Scheduler),
        Self::Replace(Part::Api),
        Self::Pause(Part::Worker),
        Self::Pause(Part::Worker),
        Self::Pause(Part::Scheduler),
        Self::CutConnections,
        Self::RefuseConnections,
        Self::CrashDatabase,
        Self::RestartDatabase,
        Self::StoreAway,
        Self::StoreFails,
        Self::StoreFailsOnce,
        Self::ReceiverRefuses,
        Self::ReceiverIsSilent,
    ];
}

/// All that can be broken, and who breaks it.
#[derive(Debug)]
pub struct Chaos {
    pub fleet: Fleet,
    pub servers: Servers,
    pub s3: S3Server,
    pub receiver: Receiver,
    chance: Chance,
    began: Instant,
}

impl Chaos {
    pub fn new(
        fleet: Fleet,
        servers: Servers,
        s3: S3Server,
        receiver: Receiver,
        seed: u64,
    ) -> Self {
        let chance = Chance::new(seed);
        Self { fleet, servers, s3, receiver, chance, began: Instant::now() }
    }

    /// Breaks things for so long; at its end everything is well again. Returns how often.
    pub async fn run(&mut self, length: Duration) -> usize {
        let mut faults = 0;
        self.began = Instant::now();
        while self.began.elapsed() < length {
            self.rest(500, 2_500).await;
            let fault = self.chance.choose(&Break::ALL);
            tell(&format!("{:7.1} s: {fault:?}", self.began.elapsed().as_secs_f64()));
            self.break_it(fault).await;
            let restarted = self.fleet.restart_what_ended();
            if restarted > 0 {
                tell(&format!("          {restarted} processes had to be started again"));
            }
            faults += 1;
        }
        // What no request has met would meet the auditor's.
        self.s3.heal();
        self.fleet.all_run().await;
        faults
    }

    async fn rest(&mut self, least_ms: u64, most_ms: u64) {
        let millis = self.chance.between(least_ms, most_ms);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    async fn break_it(&mut self, fault: Break) {
        let turn = usize::try_from(self.chance.between(0, 5)).expect("few");
        match fault {
            Break::Kill(part) => self.fleet.kill(part, turn).await,
            Break::Replace(part) => self.fleet.replace(part, turn).await,
            Break::Pause(part) => {
                self.fleet.signal(part, turn, Signal::STOP);
                // Now and then for longer than a lease.
                self.rest(1_000, 13_000).await;
                self.fleet.signal(part, turn, Signal::CONT);
            }
            Break::CutConnections => {
                self.servers.proxy.cut();
            }
            Break::RefuseConnections => {
                self.servers.proxy.refuse(true);
                self.servers.proxy.cut();
                self.rest(500, 4_000).await;
                self.servers.proxy.refuse(false);
            }
            Break::CrashDatabase => self.servers.crash_primary().await,
            Break::RestartDatabase => self.servers.restart_primary().await,
            Break::StoreAway => {
                self.s3.stop();
                self.rest(500, 5_000).await;
                self.s3.start_again();
            }
            Break::StoreFails => {
                let how = self.chance.choose(&[Fault::Busy, Fault::Broken, Fault::Refuse]);
                self.s3.break_down(Some(how));
                self.rest(500, 4_000).await;
                self.s3.break_down(None);
            }
            Break::StoreFailsOnce => {
                let how = self.chance.choose(&[Fault::Broken, Fault::Hang]);
                let operation = self.chance.choose(&[
                    Operation::Put,
                    Operation::BeginUpload,
                    Operation::UploadPart,
                    Operation::CompleteUpload,
                    Operation::AbortUpload,
                ]);
                self.s3.fail(how, operation, 1);
            }
            Break::ReceiverRefuses => {
                self.receiver.answers(Answer::Status(500));
                self.rest(1_000, 5_000).await;
                self.receiver.answers(Answer::Status(204));
            }
            Break::ReceiverIsSilent => {
                self.receiver.answers(Answer::Silence);
                self.rest(1_000, 5_000).await;
                self.receiver.answers(Answer::Status(204));
            }
        }
    }
}
