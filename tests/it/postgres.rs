//! `registrar postgres run` as a user meets it: the real binary, real servers, real signals.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test says why it failed")]

use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group, test_kill_process};
use tempfile::TempDir;

/// How long a state may take to come: far more than it needs on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes what a test must know about its server to `$FACTS`, whole or not at all.
const TELL: &str = r#"psql "$DATABASE_URL" -X -At -v ON_ERROR_STOP=1 \
    -c "show data_directory" -c "select pg_read_file('postmaster.pid')" \
    >"$FACTS.new" && echo $$ >>"$FACTS.new" && mv "$FACTS.new" "$FACTS""#;

/// A server that a test saw running.
struct Facts {
    home: PathBuf,
    server: Pid,
    command: Pid,
}

impl Facts {
    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let lines: Vec<&str> = text.lines().collect();
        let pid = |line: &str| Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        Some(Self {
            home: Path::new(lines[0]).parent().unwrap().to_owned(),
            server: pid(lines[1]),
            command: pid(lines.last().unwrap()),
        })
    }

    fn server_is_gone(&self) -> bool {
        is_gone(self.server)
    }
}

/// A folder for one test that every account can reach, whoever runs the tests.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("it-postgres-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn facts(&self) -> PathBuf {
        self.path("facts")
    }

    /// The cluster's folder for `--data`.
    fn kept(&self) -> PathBuf {
        self.path("cluster")
    }

    /// `registrar postgres run` with `options`, running `script`.
    fn registrar(&self, options: &[&str], script: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_registrar"));
        command
            .args(["postgres", "run"])
            .args(options)
            .args(["--", "sh", "-c", script])
            .env("FACTS", self.facts())
            // The tests themselves may run under `registrar postgres run`.
            .env_remove("DATABASE_URL")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, options: &[&str], script: &str) -> Output {
        self.registrar(options, script).output().unwrap()
    }

    fn run_kept(&self, script: &str) -> Output {
        self.run(&["--data", self.kept().to_str().unwrap()], script)
    }

    /// Starts a command that goes on for ever, and waits until it has seen its server.
    fn start(&self, options: &[&str]) -> (Running, Facts) {
        self.start_script(options, &format!("{TELL}; exec sleep 600"))
    }

    /// The same with a script that tells and goes on in its own way.
    fn start_script(&self, options: &[&str], script: &str) -> (Running, Facts) {
        let child = self.registrar(options, script).spawn().unwrap();
        let mut running = Running(child);
        let facts = wait_for("the command to see its server", || {
            assert_eq!(running.0.try_wait().unwrap(), None, "registrar ended early");
            Facts::read(&self.facts())
        });
        (running, facts)
    }
}

/// A registrar that is ended with the test, also with a failed one.
struct Running(Child);

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    fn exit_code(&mut self) -> Option<i32> {
        let status = wait_for("registrar to end", || self.0.try_wait().unwrap());
        if status.code() == Some(1) {
            // The command may hold the pipe open still, but what registrar said is in it.
            let mut said = [0; 4096];
            let length = self.0.stderr.as_mut().unwrap().read(&mut said).unwrap();
            eprintln!("registrar failed: {}", String::from_utf8_lossy(&said[..length]));
        }
        status.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the process has ended; one that nobody waited for yet has.
fn is_gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let is_zombie = stat.is_ok_and(|stat| stat.rsplit(')').next().unwrap().starts_with(" Z"));
    is_zombie || matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

#[track_caller]
fn stdout_of(output: &Output) -> String {
    let (stdout, stderr) = texts(output);
    assert!(output.status.success(), "{:?}\n{stdout}\n{stderr}", output.status);
    stdout
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn the_command_finds_a_server_that_ends_with_it() {
    let place = Place::new();
    let script = format!(
        "{TELL}; psql \"$DATABASE_URL\" -XAtc \
         \"select current_user, current_database(), current_setting('fsync'), lower('ÉÄ')\""
    );

    let stdout = stdout_of(&place.run(&["--temporary"], &script));

    assert_eq!(stdout, "registrar|registrar|off|éä");
    let facts = Facts::read(&place.facts()).unwrap();
    assert!(facts.server_is_gone());
    assert!(!facts.home.exists(), "{} was left", facts.home.display());
}

#[test]
fn the_commands_exit_code_and_signal_pass_through() {
    let place = Place::new();
    assert_eq!(place.run(&[], "exit 7").status.code(), Some(7));

    let killed = place.run(&[], &format!("{TELL}; kill -9 $$"));

    assert_eq!(killed.status.code(), Some(128 + 9));
    let facts = Facts::read(&place.facts()).unwrap();
    assert!(facts.server_is_gone());
    assert!(!facts.home.exists());
}

#[test]
fn a_command_that_does_not_exist_is_told_as_shells_do() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_registrar"));
    command.args(["postgres", "run", "--", "/no/such/program"]).env_remove("DATABASE_URL");
    let output = command.output().unwrap();

    assert_eq!(output.status.code(), Some(127));
    assert!(texts(&output).1.contains("/no/such/program"));
}

#[test]
fn without_the_password_nobody_gets_in() {
    let place = Place::new();
    let script = r#"psql "$(echo "$DATABASE_URL" | sed 's/:[0-9a-f]*@/:wrong@/')" -wXc 'select 1'"#;

    let output = place.run(&[], script);

    assert_eq!(output.status.code(), Some(2), "psql's code for a failed connection");
    assert!(texts(&output).1.contains("password authentication failed"), "{output:?}");
}

#[test]
fn signals_reach_the_command_and_the_server_ends() {
    let both = [Signal::TERM, Signal::INT].map(|signal| {
        std::thread::spawn(move || {
            let place = Place::new();
            let (mut running, facts) = place.start(&[]);

            kill_process(running.pid(), signal).unwrap();

            assert_eq!(running.exit_code(), Some(128 + signal.as_raw()));
            assert!(is_gone(facts.command));
            assert!(facts.server_is_gone());
            assert!(!facts.home.exists());
        })
    });
    for thread in both {
        thread.join().unwrap();
    }
}

#[test]
fn a_command_that_will_not_terminate_is_killed() {
    let place = Place::new();
    // Deaf before it tells, so that the signal cannot come between.
    let script = format!("trap '' TERM; {TELL}; while :; do sleep 1; done");
    let (mut running, facts) = place.start_script(&[], &script);

    kill_process(running.pid(), Signal::TERM).unwrap();

    assert_eq!(running.exit_code(), Some(128 + 9));
    assert!(is_gone(facts.command));
    assert!(facts.server_is_gone());
}

#[test]
fn a_killed_registrar_leaves_no_server_and_no_temporary_data() {
    let place = Place::new();
    let (mut running, facts) = place.start(&[]);

    kill_process(running.pid(), Signal::KILL).unwrap();

    assert_eq!(running.exit_code(), None);
    wait_for("the server to end", || facts.server_is_gone().then_some(()));
    wait_for("the data to go", || (!facts.home.exists()).then_some(()));
    kill_process(facts.command, Signal::KILL).unwrap();
}

#[test]
fn a_killed_guard_does_not_save_the_server_from_its_end() {
    let place = Place::new();
    let (mut running, facts) = place.start(&[]);
    // The guard leads the server's process group.
    let guard = getpgid(Some(facts.server)).unwrap();
    assert_ne!(guard, facts.server);

    kill_process(guard, Signal::KILL).unwrap();
    kill_process(running.pid(), Signal::TERM).unwrap();

    assert_eq!(running.exit_code(), Some(128 + 15));
    assert!(facts.server_is_gone());
    assert!(!facts.home.exists());
}

#[test]
fn kept_data_survive_and_are_durable_and_private() {
    let place = Place::new();
    let fill = r#"psql "$DATABASE_URL" -XAtc "create table kept as select 42 as answer""#;
    stdout_of(&place.run_kept(fill));

    let read = r#"psql "$DATABASE_URL" -XAtc "select answer, current_setting('fsync') from kept""#;
    assert_eq!(stdout_of(&place.run_kept(read)), "42|on");

    let (home, data) = (place.kept(), place.kept().join("data"));
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&home.join("password")), 0o600);
    assert_eq!(mode(&home.join("postgres.log")), 0o600);
    assert_eq!(mode(&data), 0o700);
    assert_ne!(fs::metadata(&data).unwrap().uid(), 0, "root must not own the data");
}

#[test]
fn a_cluster_in_use_is_refused_with_the_servers_process_id() {
    let place = Place::new();
    let kept = place.kept();
    let (mut running, facts) = place.start(&["--data", kept.to_str().unwrap()]);

    let second = place.run_kept("exit 0");

    let (_, stderr) = texts(&second);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr.contains("in use"), "{stderr}");
    assert!(stderr.contains(&facts.server.as_raw_nonzero().to_string()), "{stderr}");
    kill_process(facts.command, Signal::TERM).unwrap();
    assert_eq!(running.exit_code(), Some(128 + 15));
}

#[test]
fn a_kept_cluster_recovers_after_everything_was_killed() {
    let place = Place::new();
    let kept = place.kept();
    let create = r#"psql "$DATABASE_URL" -Xqc "create table t as select 1 as a""#;
    let script = format!("{create} && {TELL}; exec sleep 600");
    let (mut running, facts) = place.start_script(&["--data", kept.to_str().unwrap()], &script);

    kill_process(running.pid(), Signal::STOP).unwrap();
    kill_process_group(getpgid(Some(facts.server)).unwrap(), Signal::KILL).unwrap();
    kill_process(running.pid(), Signal::KILL).unwrap();
    kill_process(facts.command, Signal::KILL).unwrap();
    assert_eq!(running.exit_code(), None);
    wait_for("the server to end", || facts.server_is_gone().then_some(()));

    // The lock file is still there; let it name a stranger that lives, as after a restart of
    // a container.
    let lock_file = kept.join("data/postmaster.pid");
    let text = fs::read_to_string(&lock_file).expect("a killed server leaves its lock file");
    let rest = text.split_once('\n').unwrap().1;
    fs::write(&lock_file, format!("{}\n{rest}", std::process::id())).unwrap();

    let count = r#"psql "$DATABASE_URL" -XAtc "select count(*) from t""#;
    assert_eq!(stdout_of(&place.run_kept(count)), "1");
}

#[test]
fn a_kept_cluster_outlives_a_killed_registrar() {
    let place = Place::new();
    let kept = place.kept();
    let (mut running, facts) = place.start(&["--data", kept.to_str().unwrap()]);
    kill_process(running.pid(), Signal::KILL).unwrap();
    assert_eq!(running.exit_code(), None);
    kill_process(facts.command, Signal::KILL).unwrap();

    // At once: the start waits for the guard to end the old server.
    let script = format!("{TELL}; psql \"$DATABASE_URL\" -XAtc 'select 1'");
    assert_eq!(stdout_of(&place.run_kept(&script)), "1");
    assert!(facts.server_is_gone());
    assert_eq!(Facts::read(&place.facts()).unwrap().home, facts.home);
}

#[test]
fn data_of_another_version_are_refused_by_name() {
    let place = Place::new();
    stdout_of(&place.run_kept("exit 0"));
    fs::write(place.kept().join("data/PG_VERSION"), "9.6\n").unwrap();

    let output = place.run_kept("exit 0");

    assert_eq!(output.status.code(), Some(1));
    let (_, stderr) = texts(&output);
    assert!(stderr.contains("made by PostgreSQL 9.6"), "{stderr}");
    assert!(stderr.contains("REGISTRAR_POSTGRES_BIN"), "{stderr}");
}

#[test]
fn missing_server_programs_say_what_to_install() {
    let place = Place::new();
    let mut command = place.registrar(&[], "exit 0");
    let output = command.env("REGISTRAR_POSTGRES_BIN", place.0.path()).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    let (_, stderr) = texts(&output);
    for hint in ["apt-get install postgresql", "dnf install", "brew install"] {
        assert!(stderr.contains(hint), "{stderr}");
    }
}

#[test]
fn a_server_that_does_not_start_shows_its_log() {
    let place = Place::new();
    let output = place.run(&["--set", "shared_buffers=plenty"], "exit 0");

    assert_eq!(output.status.code(), Some(1));
    let (_, stderr) = texts(&output);
    assert!(stderr.contains(r#"invalid value for parameter "shared_buffers""#), "{stderr}");
    let home = stderr.split_whitespace().find(|word| word.contains("registrar-")).unwrap();
    assert!(!Path::new(home).exists(), "{home} was left");
}

#[test]
fn with_database_url_given_no_server_is_started() {
    let place = Place::new();
    let output = place
        .registrar(&["--data", place.kept().to_str().unwrap()], "echo \"$DATABASE_URL\"; exit 4")
        .env("DATABASE_URL", "postgres://somebody@elsewhere/else")
        // Nothing is looked for, either.
        .env("REGISTRAR_POSTGRES_BIN", place.0.path())
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(4));
    let (stdout, stderr) = texts(&output);
    assert_eq!(stdout, "postgres://somebody@elsewhere/else");
    assert!(stderr.contains("using that server"), "{stderr}");
    assert!(!place.kept().exists());
}

#[test]
fn a_place_that_only_root_can_reach_is_stood_in_for() {
    let place = Place::new();
    fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let script = r#"psql "$DATABASE_URL" -XAtc "show data_directory""#;

    let output = place.run_kept(script);

    let stderr = texts(&output).1;
    let data = PathBuf::from(stdout_of(&output));
    if is_root() {
        assert!(data.starts_with("/var/tmp"), "{}", data.display());
        assert!(stderr.contains(data.parent().unwrap().to_str().unwrap()), "{stderr}");
        assert_eq!(stdout_of(&place.run_kept(script)), data.to_str().unwrap());
        fs::remove_dir_all(data.parent().unwrap()).unwrap();
    } else {
        assert!(data.ends_with("cluster/data"), "{}", data.display());
        assert_eq!(stderr, "");
    }
}
