//! Databases for what is measured through the service itself: migrated, filled once, and copied
//! for every run, so that all runs begin in the same state.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

/// What every run is a copy of.
const TEMPLATE: &str = "bench_template";
/// The copy that is worked on.
pub const RUN: &str = "bench_run";
/// Of the report role, which the private server knows by it.
const REPORT_PASSWORD: &str = "bench-report";

/// Accounts, and a thousand of them deleted for long.
const USERS: &str = "
insert into users (username, email, password, first_name, last_name, phone_number, date_of_birth,
                   gender, address, city, country, postal_code, date_joined, deleted_at, is_active)
select 'user' || n, 'user' || n || '@bench.example', 'pbkdf2_sha256$' || md5(n::text),
       'Name' || n % 997, 'Family' || n % 9973, '+26377' || 1000000 + n,
       date '1990-01-01' + n % 9000, (array['f', 'm', 'x'])[1 + n % 3], n || ' Main Road',
       (array['Harare', 'Bulawayo', 'Mutare'])[1 + n % 3], 'Zimbabwe', '00' || n % 100,
       now() - interval '6 years',
       case when n % 200 = 7 then now() - interval '60 days' end, n % 200 <> 7
  from generate_series(1, 200000) n";

/// Audit rows that are all old enough to be archived, none of an account that is to be deleted.
const AUDIT_ROWS: &str = "
insert into audit_logs (user_id, action, entity_type, entity_id, old_values, new_values,
                        ip_address, user_agent, created_at)
select 200 * (1 + n % 1000), 'user.updated', 'users', 1 + n % 200000,
       jsonb_build_object('city', 'Harare', 'version', n),
       jsonb_build_object('city', 'Bulawayo', 'version', n + 1),
       ('10.' || n % 250 || '.' || n % 241 || '.7')::inet,
       'Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/128.0',
       now() - interval '9 years' + n * interval '60 seconds'
  from generate_series(1, 1000000) n";

/// Policies that no ceiling and no sign of load stops: the machine is busy by intention.
const POLICIES: [(&str, &str); 3] = [
    (
        "archive-audit-logs.toml",
        r#"kind = "archive"
description = "All audit rows."
owner = "bench"
limits = { chunk_target = "50ms" }
[[table]]
name = "audit_logs"
age = "created_at"
after = "5 years"
"#,
    ),
    (
        "anonymize-users.toml",
        r#"kind = "anonymize"
description = "All accounts."
owner = "bench"
limits = { chunk_target = "50ms" }
[[table]]
name = "users"
age = "date_joined"
after = "5 years"
"#,
    ),
    (
        "purge-deleted-users.toml",
        r#"kind = "purge"
description = "The accounts that were deleted."
owner = "bench"
limits = { chunk_target = "50ms" }
[[table]]
name = "users"
age = "deleted_at"
after = "30 days"
if_referenced = "refuse"
"#,
    ),
];

/// A server, the program that is measured, and a folder for its files.
pub struct Ground {
    server_url: String,
    registrar: PathBuf,
    /// For files of any kind.
    pub folder: PathBuf,
}

impl Ground {
    /// Makes the database that the others are copies of.
    pub fn prepare(server_url: &str, folder: PathBuf) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let registrar = this
            .ancestors()
            .nth(2)
            .map(|folder| folder.join("registrar"))
            .filter(|program| program.exists())
            .context("the program `registrar` is not built: see script/bench")?;
        let ground = Self { server_url: server_url.to_owned(), registrar, folder };
        ground.write_files()?;
        ground.create(TEMPLATE, "")?;
        ground.registrar(TEMPLATE, &["migrate", "up"])?;
        // For the age of a policy.
        ground.sql(TEMPLATE, "create index on users (date_joined)")?;
        // On the empty tables: the first run of an archive makes its table.
        for (policy, _) in POLICIES {
            ground.run_policy(TEMPLATE, policy.trim_end_matches(".toml"))?;
        }
        for statement in [USERS, AUDIT_ROWS, "vacuum (analyze)", "checkpoint"] {
            ground.sql(TEMPLATE, statement)?;
        }
        Ok(ground)
    }

    fn write_files(&self) -> anyhow::Result<()> {
        let (jobs, reports) = (self.folder.join("jobs"), self.folder.join("reports"));
        std::fs::create_dir_all(&jobs)?;
        std::fs::create_dir_all(&reports)?;
        std::fs::write(
            jobs.join("classification.toml"),
            include_str!("../../jobs/classification.toml"),
        )?;
        for (name, policy) in POLICIES {
            std::fs::write(jobs.join(name), policy)?;
        }
        std::fs::write(reports.join("one-row.toml"), "title = \"One row\"\n")?;
        std::fs::write(reports.join("one-row.sql"), "select 1 as number\n")?;
        Ok(())
    }

    /// A new copy, whose name is [`RUN`].
    pub fn copy(&self) -> anyhow::Result<()> {
        self.create(RUN, &format!("template {TEMPLATE} strategy file_copy"))?;
        self.sql(RUN, "checkpoint").map(drop)
    }

    /// The filled database itself, for what only reads it.
    pub const fn original() -> &'static str {
        TEMPLATE
    }

    fn create(&self, name: &str, how: &str) -> anyhow::Result<()> {
        let mut psql = self.psql(None);
        psql.args(["-c", &format!("drop database if exists {name} with (force)")]);
        psql.args(["-c", &format!("create database {name} {how}")]);
        output(psql).map(drop)
    }

    /// The address of a database.
    pub fn url(&self, database: &str) -> anyhow::Result<String> {
        let mut url: url::Url = self.server_url.parse()?;
        url.set_path(database);
        Ok(url.into())
    }

    /// What a statement returns, without spaces and headings.
    pub fn sql(&self, database: &str, statement: &str) -> anyhow::Result<String> {
        let mut psql = self.psql(Some(&self.url(database)?));
        psql.args(["-c", statement]);
        output(psql)
    }

    fn psql(&self, url: Option<&str>) -> Command {
        let mut command = Command::new("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]);
        command.args(["-d", url.unwrap_or(&self.server_url)]);
        command.env("PGOPTIONS", "-c client_min_messages=warning");
        command
    }

    /// What `registrar` prints, run on a database.
    pub fn registrar(&self, database: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(database)?;
        command.args(arguments);
        output(command).with_context(|| format!("registrar {}", arguments.join(" ")))
    }

    /// `registrar`, ready to be run on a database.
    pub fn command(&self, database: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.registrar);
        command
            .env("DATABASE_URL", self.url(database)?)
            .env("REGISTRAR__DATABASE__REPORT_PASSWORD", REPORT_PASSWORD)
            .env("REGISTRAR__STORE__URL", self.folder.join("store"))
            .env("REGISTRAR__LIFECYCLE__JOBS_DIR", self.folder.join("jobs"))
            .env("REGISTRAR__REPORT__TEMPLATES_DIR", self.folder.join("reports"))
            // Who is deleted is told to the ledger before.
            .env("REGISTRAR__ERASURE__KEYS__K1", "2a".repeat(32))
            .env("REGISTRAR__LOG__FILTER", "warn");
        Ok(command)
    }

    /// Runs a policy, as a person would by hand.
    pub fn run_policy(&self, database: &str, policy: &str) -> anyhow::Result<()> {
        self.registrar(database, &["policy", "run", policy, "--yes"]).map(drop)
    }
}

/// What a program prints, if it succeeds.
pub fn output(mut command: Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
