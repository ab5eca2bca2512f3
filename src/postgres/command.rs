//! Runs a command beside a private cluster: the signals we get, its exit code, the certain end.

use std::{
    ffi::OsString, io::IsTerminal, os::unix::process::ExitStatusExt, process::ExitStatus,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::Child,
    signal::unix::{self, SignalKind},
};

use super::{ClusterOptions, Error, PrivateCluster};

/// How long the command may go on after it was told to terminate, before it is killed:
/// within the 10 s that service managers commonly give us.
const TERMINATE_LIMIT: Duration = Duration::from_secs(8);

/// What shells add to the number of a signal to make an exit code of it.
const SIGNAL_CODE_BASE: i32 = 128;

/// Starts a cluster, runs `program` with `DATABASE_URL` set to it, stops the cluster whatever
/// happens, and returns the exit code of `program`: 128 + signal when a signal ended it.
///
/// SIGTERM, SIGHUP and, away from a terminal, SIGINT and SIGQUIT are passed on to the command.
/// At a terminal those two come from its keys and reach the command without us.
/// `announce` sees the cluster before the command runs.
///
/// # Errors
/// As [`PrivateCluster::start`], and when the command cannot be run or the server not stopped.
pub async fn run_with_cluster(
    options: ClusterOptions,
    program: OsString,
    arguments: Vec<OsString>,
    announce: impl FnOnce(&PrivateCluster),
) -> Result<u8, Error> {
    // Before the start, so that no signal can end us with a server running.
    let mut signals = Signals::listen()?;
    let cluster = PrivateCluster::start(options).await?;
    announce(&cluster);
    let outcome = match signals.already_received() {
        Some(signal) => Ok(code_of_signal(signal)),
        None => run(program, arguments, &cluster.database_url(), &mut signals).await,
    };
    let stopped = cluster.stop().await;
    let code = outcome?;
    stopped.map(|()| code)
}

async fn run(
    program: OsString,
    arguments: Vec<OsString>,
    database_url: &str,
    signals: &mut Signals,
) -> Result<u8, Error> {
    let mut child = tokio::process::Command::new(&program)
        .args(arguments)
        .env("DATABASE_URL", database_url)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| Error::Command {
            program: program.to_string_lossy().into_owned(),
            source,
        })?;
    let keys_reach_child = std::io::stdin().is_terminal()
        || std::io::stdout().is_terminal()
        || std::io::stderr().is_terminal();
    loop {
        tokio::select! {
            status = child.wait() => return code_of(status, program),
            signal = signals.next() => match signal {
                Signal::INT | Signal::QUIT if keys_reach_child => {}
                Signal::INT | Signal::QUIT => pass_on(signal, &child),
                _ => {
                    pass_on(signal, &child);
                    let status = wait_or_kill(&mut child).await;
                    return code_of(status, program);
                }
            },
        }
    }
}

async fn wait_or_kill(child: &mut Child) -> std::io::Result<ExitStatus> {
    if let Ok(status) = tokio::time::timeout(TERMINATE_LIMIT, child.wait()).await {
        return status;
    }
    child.kill().await?;
    child.wait().await
}

fn pass_on(signal: Signal, child: &Child) {
    // No id means that it has ended and been waited for.
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        // It may end this very moment; then nobody needs the signal.
        let _ = kill_process(pid, signal);
    }
}

fn code_of(status: std::io::Result<ExitStatus>, program: OsString) -> Result<u8, Error> {
    let status = status.map_err(Error::io("wait for", program))?;
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => SIGNAL_CODE_BASE + signal,
        (None, None) => 1,
    };
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

fn code_of_signal(signal: Signal) -> u8 {
    u8::try_from(SIGNAL_CODE_BASE + signal.as_raw()).unwrap_or(u8::MAX)
}

/// The signals that ask us to end; once listened to, they no longer end us by themselves.
struct Signals {
    interrupt: unix::Signal,
    quit: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let listen =
            |kind| unix::signal(kind).map_err(Error::io("listen to signals of", "the system"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hang_up.recv() => Signal::HUP,
        }
    }

    /// The signal that came while nobody waited for one.
    fn already_received(&mut self) -> Option<Signal> {
        futures::FutureExt::now_or_never(self.next())
    }
}
