//! The processes of docker-compose.yml: two APIs, three workers, two schedulers. Each can be
//! killed, asked to end or paused, and another one takes its place.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use registrar::config::Config;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::eventually;
use crate::support::process::Process;

/// How long a process may take to start.
const LIMIT: Duration = Duration::from_secs(60);

/// A part of the service that has processes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Api,
    Worker,
    Scheduler,
}

impl Part {
    pub const ALL: [Self; 3] = [Self::Api, Self::Worker, Self::Scheduler];

    /// As `serve --only` calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Worker => "worker",
            Self::Scheduler => "scheduler",
        }
    }

    /// What it logs when it runs, and hears a signal.
    const fn says(self) -> &'static str {
        match self {
            Self::Api => "listening on",
            Self::Worker => "worker started",
            Self::Scheduler => "scheduler started",
        }
    }

    const fn processes(self) -> usize {
        match self {
            Self::Api | Self::Scheduler => 2,
            Self::Worker => 3,
        }
    }
}

#[derive(Debug)]
struct Member {
    part: Part,
    /// Where it listens: the next one in its place listens there too.
    listen: SocketAddr,
    process: Process,
}

/// The running processes.
#[derive(Debug)]
pub struct Fleet {
    config: Config,
    /// Where its processes may put temporary files.
    scratch: TempDir,
    members: Vec<Member>,
}

impl Fleet {
    pub fn start(config: Config) -> Self {
        let scratch = TempDir::new().unwrap();
        let mut members = Vec::new();
        for part in Part::ALL {
            for _ in 0..part.processes() {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                let listen = listener.local_addr().unwrap();
                drop(listener);
                let process = run(&config, &scratch, part, listen);
                members.push(Member { part, listen, process });
            }
        }
        Self { config, scratch, members }
    }

    /// Where the APIs are, whichever processes serve them.
    pub fn bases(&self) -> Vec<String> {
        let apis = self.members.iter().filter(|member| member.part == Part::Api);
        apis.map(|member| format!("http://{}", member.listen)).collect()
    }

    /// Kills a process of a part; another one takes its place.
    pub async fn kill(&mut self, part: Part, turn: usize) {
        let Self { config, scratch, members } = self;
        let member = member(members, part, turn);
        member.process.kill().await;
        member.process = run(config, scratch, part, member.listen);
    }

    /// Asks a process to end and waits until it has; another one takes its place.
    pub async fn replace(&mut self, part: Part, turn: usize) {
        let Self { config, scratch, members } = self;
        let member = member(members, part, turn);
        member.end().await;
        member.process = run(config, scratch, part, member.listen);
    }

    /// What an orchestrator does: starts again what could not start, because the database was
    /// away. Returns how many these were.
    pub fn restart_what_ended(&mut self) -> usize {
        let mut restarted = 0;
        for member in &mut self.members {
            if !member.process.is_running() {
                let log = member.process.log();
                let name = member.part.name();
                assert!(!log.contains(member.part.says()), "a {name} ended by itself:\n{log}");
                member.process = run(&self.config, &self.scratch, member.part, member.listen);
                restarted += 1;
            }
        }
        restarted
    }

    /// Waits until every process runs, after the last fault.
    pub async fn all_run(&mut self) {
        eventually("the whole fleet to run", LIMIT, async || {
            self.restart_what_ended();
            let runs = |member: &Member| member.process.log().contains(member.part.says());
            self.members.iter().all(runs).then_some(())
        })
        .await;
    }

    /// Lets a process stand still, or go on.
    pub fn signal(&mut self, part: Part, turn: usize, signal: Signal) {
        member(&mut self.members, part, turn).process.signal(signal);
    }

    /// Asks every process to end, the APIs last, and waits until they have.
    /// Returns the temporary files that they left.
    pub async fn stop(self) -> Vec<PathBuf> {
        let (apis, others): (Vec<_>, Vec<_>) =
            self.members.into_iter().partition(|member| member.part == Part::Api);
        for mut member in others.into_iter().chain(apis) {
            member.end().await;
        }
        let left = std::fs::read_dir(self.scratch.path()).unwrap();
        left.map(|entry| entry.unwrap().path()).collect()
    }
}

/// One of a part, by turns.
fn member(members: &mut [Member], part: Part, turn: usize) -> &mut Member {
    let mut members: Vec<_> = members.iter_mut().filter(|m| m.part == part).collect();
    let count = members.len();
    members.swap_remove(turn % count)
}

impl Member {
    /// Asks the process to end, once it can hear that, and waits until it has.
    async fn end(&mut self) {
        let (process, says, name) = (&mut self.process, self.part.says(), self.part.name());
        eventually(&format!("a {name} to run"), LIMIT, async || {
            let has_ended = !process.is_running();
            (has_ended || process.log().contains(says)).then_some(())
        })
        .await;
        process.signal(Signal::TERM);
        let status = process.ended().await;
        assert!(status.success(), "a {name} ended with {status}:\n{}", process.log());
    }
}

fn run(config: &Config, scratch: &TempDir, part: Part, listen: SocketAddr) -> Process {
    let mut config = config.clone();
    if part == Part::Api {
        config.http.listen = listen;
    }
    Process::start_in(scratch.path(), &config, &["serve", "--only", part.name()])
}
