//! The server's processes: starting, knowing when it takes connections, and its certain end.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

use super::{Binaries, Error, home::Home};

/// Shell code that outlives us and ends the server when we are gone; see the file.
const GUARD: &str = include_str!("guard.sh");

/// How long a start may take: a kept cluster may first have to recover from a crash.
pub(super) const START_LIMIT: Duration = Duration::from_secs(60);

/// How often a start is tried again after a failure that passes by itself.
const START_ATTEMPTS: u32 = 10;
const PAUSE_BETWEEN_STARTS: Duration = Duration::from_millis(300);

/// How long a server whose Registrar was killed gets to end; longer than its guard gives it.
const ORPHAN_LIMIT: Duration = Duration::from_secs(15);

/// How long each kind of stop may take before the next harder one is tried. PostgreSQL itself
/// kills its backends 5 s into an immediate stop.
const FAST_STOP_LIMIT: Duration = Duration::from_secs(10);
const IMMEDIATE_STOP_LIMIT: Duration = Duration::from_secs(8);
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// How often states that nobody announces are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What PostgreSQL and the operating system say when a start may work a moment later: the port
/// was taken between our choice and the server's, or backends of a killed server still end.
/// The server runs in the C locale, so these texts do not depend on the user's language.
const PASSING_FAILURES: [&str; 2] = ["Address already in use", "pre-existing shared memory block"];

/// A program of the cluster and the guard around it.
#[derive(Debug)]
struct Guarded {
    guard: Child,
    /// Closing it tells the guard to end the program.
    leash: Option<ChildStdin>,
}

impl Guarded {
    fn spawn(home: &Home, program: &Path, fill: impl FnOnce(&mut Command)) -> Result<Self, Error> {
        let log = home.new_log()?;
        let second = log.try_clone().map_err(Error::io("share the log of", home.dir()))?;
        let mut command = home.account().command("/bin/sh", home.dir());
        command
            .args(["-c", GUARD, "guard", if home.is_temporary() { "remove" } else { "keep" }])
            .arg(home.dir())
            .arg(program);
        fill(&mut command);
        command.stdin(Stdio::piped()).stdout(log).stderr(second);
        let mut guard = command.spawn().map_err(Error::io("run", program))?;
        // Taken out, because waiting for the child would close it.
        let leash = guard.stdin.take();
        Ok(Self { guard, leash })
    }

    fn has_ended(&mut self) -> Option<ExitStatus> {
        // An error would mean that the child is not ours, which it is.
        self.guard.try_wait().ok().flatten()
    }

    /// If somebody killed the guard, its helper still waits for us to let go of the leash, and
    /// would then touch a folder that we may be removing.
    fn end_what_a_killed_guard_left(&mut self) {
        if self.has_ended().is_some_and(|status| status.code().is_none()) {
            // The guard led its process group. An error means that nobody is left in it.
            let _ = kill_process_group(Pid::from_child(&self.guard), Signal::KILL);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.leash.take());
        wait_until(IMMEDIATE_STOP_LIMIT, || self.has_ended().is_some());
    }
}

/// A server that takes connections.
#[derive(Debug)]
pub(super) struct Server {
    guarded: Guarded,
    pid: Pid,
    port: u16,
}

/// Makes the data of a new cluster in the empty folder `data`.
pub(super) fn init(
    home: &Home,
    binaries: &Binaries,
    data: &Path,
    pwfile: &Path,
) -> Result<(), Error> {
    let mut initdb = Guarded::spawn(home, &binaries.program("initdb"), |command| {
        command.arg("--pgdata").arg(data).arg("--pwfile").arg(pwfile);
        command.args(["--username=registrar", "--auth=scram-sha-256", "--encoding=UTF8"]);
        // Texts sort by code point, the same on every machine; letters still have cases.
        if cfg!(target_os = "macos") {
            command.args(["--locale=C", "--lc-ctype=en_US.UTF-8"]);
        } else {
            command.args(["--locale=C.UTF-8", "--lc-messages=C"]);
        }
        if home.is_temporary() {
            command.arg("--no-sync");
        }
    })?;
    let mut status = None;
    wait_until(START_LIMIT, || {
        status = initdb.has_ended();
        status.is_some()
    });
    if status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    Err(Error::Init { home: home.dir().to_owned(), log: home.log_tail() })
}

impl Server {
    /// Starts the server of `home` on a free port and waits until it takes connections.
    pub(super) fn start(
        home: &Home,
        binaries: &Binaries,
        settings: &[(String, String)],
        limit: Duration,
    ) -> Result<Self, Error> {
        let leftover = wait_for_orphan(home)?;
        let mut attempt = 1;
        loop {
            let port = free_port()?;
            match Self::start_on(port, home, binaries, settings, leftover.as_ref(), limit) {
                Err(Error::Start { log, .. })
                    if attempt < START_ATTEMPTS
                        && PASSING_FAILURES.iter().any(|text| log.contains(text)) =>
                {
                    attempt += 1;
                    std::thread::sleep(PAUSE_BETWEEN_STARTS);
                }
                result => return result,
            }
        }
    }

    fn start_on(
        port: u16,
        home: &Home,
        binaries: &Binaries,
        settings: &[(String, String)],
        leftover: Option<&Leftover>,
        limit: Duration,
    ) -> Result<Self, Error> {
        let data = home.data();
        let mut guarded = Guarded::spawn(home, &binaries.program("postgres"), |command| {
            command.arg("-D").arg(&data);
            let fixed = fixed_settings(port, home.is_temporary());
            for (name, value) in fixed.iter().chain(settings) {
                command.arg("-c").arg(format!("{name}={value}"));
            }
            if let Some(Leftover { pid: Some(pid), .. }) = leftover {
                // The number in the left lock file belongs to a stranger now. The server takes
                // it for stale if it is told that it is its own grandparent's, and still
                // looks for backends of the old server, which removing the file would prevent.
                command.env("PG_GRANDPARENT_PID", pid.as_raw_nonzero().to_string());
            }
        })?;
        let deadline = Instant::now() + limit;
        loop {
            if guarded.has_ended().is_some() {
                let (home, log) = (home.dir().to_owned(), home.log_tail());
                return Err(Error::Start { home, log });
            }
            let text = read_lock_file(&data);
            if text.as_ref() != leftover.map(|leftover| &leftover.text)
                && let Some(pid) = text.as_deref().and_then(|text| ready_on(text, port))
            {
                return Ok(Self { guarded, pid, port });
            }
            if Instant::now() >= deadline {
                let (home, log) = (home.dir().to_owned(), home.log_tail());
                return Err(Error::StartTimeout { home, limit_secs: limit.as_secs(), log });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// The port on the loopback address.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Ends the server: in order unless `at_once`, then harder and harder.
    pub(super) fn stop(mut self, at_once: bool) -> Result<(), Error> {
        let mut steps = vec![
            (Signal::QUIT, IMMEDIATE_STOP_LIMIT), // "immediate"
            (Signal::KILL, KILL_LIMIT),
        ];
        if !at_once {
            steps.insert(0, (Signal::INT, FAST_STOP_LIMIT)); // "fast"
        }
        for (signal, limit) in steps {
            if self.has_ended() {
                break;
            }
            // It may end before the signal comes: then the wait below sees that.
            let _ = kill_process(self.pid, signal);
            if wait_until(limit, || self.has_ended()) {
                break;
            }
        }
        let has_ended = self.has_ended();
        self.guarded.end_what_a_killed_guard_left();
        if has_ended { Ok(()) } else { Err(Error::Stop { pid: self.pid() }) }
    }

    fn has_ended(&mut self) -> bool {
        match self.guarded.has_ended() {
            None => false,
            // The guard waited for the server, whose number may be another's by now.
            Some(status) if status.code().is_some() => true,
            Some(_guard_was_killed) => !is_alive(self.pid),
        }
    }
}

/// The settings every private server has; later ones win, so a caller can change them.
fn fixed_settings(port: u16, is_temporary: bool) -> Vec<(String, String)> {
    let mut settings = vec![
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        // Socket paths have a length limit that a deep folder exceeds.
        ("unix_socket_directories", String::new()),
        ("max_connections", "400".to_owned()),
        ("shared_buffers", "256MB".to_owned()),
        ("timezone", "UTC".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        // DETAIL prints whole rows, which may hold personal data.
        ("log_error_verbosity", "terse".to_owned()),
    ];
    if is_temporary {
        for name in ["fsync", "synchronous_commit", "full_page_writes"] {
            settings.push((name, "off".to_owned()));
        }
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(Error::io("find a free port on", "127.0.0.1"))?;
    Ok(listener.port())
}

/// A lock file (`postmaster.pid`) that a killed server left behind.
struct Leftover {
    text: String,
    /// Set when a process has this number that is not the server.
    pid: Option<Pid>,
}

/// Waits for the server of a killed Registrar, which its guard is ending. We hold the folder's
/// lock, so no other Registrar uses it.
fn wait_for_orphan(home: &Home) -> Result<Option<Leftover>, Error> {
    let data = home.data();
    let runs = || recorded_process(&data).filter(|pid| is_alive(*pid) && is_server(*pid, &data));
    if !wait_until(ORPHAN_LIMIT, || runs().is_none()) {
        let pid = runs().map(|pid| pid.as_raw_nonzero().get());
        return Err(Error::InUse { home: home.dir().to_owned(), pid });
    }
    let pid = recorded_process(&data).filter(|pid| is_alive(*pid));
    Ok(read_lock_file(&data).map(|text| Leftover { text, pid }))
}

/// The process that the lock file in `data` names, whether it lives or not.
pub(super) fn recorded_pid(data: &Path) -> Option<i32> {
    recorded_process(data).map(|pid| pid.as_raw_nonzero().get())
}

fn recorded_process(data: &Path) -> Option<Pid> {
    // A single-user server writes its number with a minus sign.
    let number: i32 = read_lock_file(data)?.lines().next()?.trim().parse().ok()?;
    Pid::from_raw(number.checked_abs()?)
}

fn read_lock_file(data: &Path) -> Option<String> {
    std::fs::read_to_string(lock_file(data)).ok()
}

fn lock_file(data: &Path) -> PathBuf {
    data.join("postmaster.pid")
}

/// The server's process, if the lock file says that it takes connections on `port`. Its lines
/// are process, folder, start time, port, socket folder, address, shared memory, status.
fn ready_on(lock_file: &str, port: u16) -> Option<Pid> {
    let lines: Vec<&str> = lock_file.lines().map(str::trim).collect();
    let is_ready = lines.get(3)?.parse() == Ok(port) && *lines.get(7)? == "ready";
    is_ready.then_some(())?;
    Pid::from_raw(lines.first()?.parse().ok()?)
}

fn is_alive(pid: Pid) -> bool {
    // "Not permitted" means that there is one.
    !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// Whether the process `pid` is a server of `data`: numbers of processes are used again, in
/// containers soon, and then the lock file of a killed server names a stranger.
fn is_server(pid: Pid, data: &Path) -> bool {
    let number = pid.as_raw_nonzero();
    let words = std::fs::read(format!("/proc/{number}/cmdline")).or_else(|_| {
        let args = ["-ww", "-o", "args=", "-p", &number.to_string()];
        Command::new("ps").args(args).output().map(|output| output.stdout)
    });
    // If nobody can say, the safe answer is that it is.
    let Ok(words) = words else { return true };
    let wanted = data.as_os_str().as_encoded_bytes();
    words.windows(wanted.len()).any(|part| part == wanted)
}

/// Looks until `is_done` or the time is over, and tells which.
fn wait_until(limit: Duration, mut is_done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if is_done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK_FILE: &str =
        "4711\n/data\n1700000000\n54321\n\n127.0.0.1\n  5432001   196608\nready   \n";

    #[test]
    fn readiness_needs_the_port_and_the_status() {
        assert_eq!(ready_on(LOCK_FILE, 54321), Pid::from_raw(4711));
        assert_eq!(ready_on(LOCK_FILE, 54322), None);
        assert_eq!(ready_on(&LOCK_FILE.replace("ready", "starting"), 54321), None);
        assert_eq!(ready_on("4711\n/data\n", 54321), None);
    }

    #[test]
    fn a_process_is_a_server_only_if_its_arguments_name_the_folder() {
        let ourselves = rustix::process::getpid();
        let program = std::env::args_os().next().unwrap();
        assert!(is_alive(ourselves));
        assert!(is_server(ourselves, Path::new(&program)));
        assert!(!is_server(ourselves, Path::new("/some/data")));
    }

    #[test]
    fn settings_of_temporary_clusters_are_fast_and_those_of_kept_ones_durable() {
        let has = |settings: &[(String, String)]| settings.iter().any(|(name, _)| name == "fsync");
        assert!(has(&fixed_settings(1, true)));
        assert!(!has(&fixed_settings(1, false)));
    }
}
