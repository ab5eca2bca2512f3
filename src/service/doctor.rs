//! `doctor`: whether everything that Registrar stands on is as it must be, found by trying it.
//!
//! Messages are for an operator. They name roles, settings and counts, and never hold an address, a
//! secret or a server's DETAIL.

use std::future::Future;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::Services;
use crate::db::diagnostics::{self, Server};
use crate::db::{self, backups};
use crate::report::source::SessionLimits;
use crate::schema::{self, MigrationState};
use crate::store::{ObjectKey, StoreError};

/// The oldest PostgreSQL that Registrar works with.
const OLDEST_SERVER: i32 = 150_000;
/// Longest time for one check.
const PATIENCE: Duration = Duration::from_secs(30);
/// Clocks that differ by this are worth a look.
const SKEW_TO_MENTION: TimeDelta = TimeDelta::seconds(2);
/// Clocks that differ by this break signatures and leases: S3 refuses requests at 15 minutes.
const SKEW_TO_FAIL: TimeDelta = TimeDelta::minutes(5);
/// The newest backup should not be older than this, nor the newest proof of one: as in the alerts.
const OLD_BACKUP_HOURS: f64 = 48.0;
const OLD_PROOF_HOURS: f64 = 192.0;
/// Less free disk than this is worth a look.
const SCRATCH_MIB: u64 = 1_024;
/// Where results are uploaded to.
const RESULTS_FOLDER: &str = "results";
/// Parts of the upload that is tried: S3 takes none under 5 MiB but the last.
const PART_BYTES: usize = 5 * 1024 * 1024;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it must be.
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// Something will not work.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found, and what to do about it.
    pub message: String,
}

/// What one check says.
type Verdict = (Outcome, String);

fn ok(message: impl Into<String>) -> Verdict {
    (Outcome::Ok, message.into())
}

fn warning(message: impl Into<String>) -> Verdict {
    (Outcome::Warning, message.into())
}

fn failed(message: impl Into<String>) -> Verdict {
    (Outcome::Failed, message.into())
}

impl Services {
    /// Looks at everything, one after the other; each check has a bound of its own, so that one
    /// that hangs hides no other.
    pub async fn examine(&self) -> Vec<Finding> {
        let asked = tokio::time::timeout(PATIENCE, diagnostics::server(&self.db, db::REPORT_ROLE));
        let Ok(Ok(server)) = asked.await else {
            // Without the database the rest would only repeat that.
            let (outcome, message) = failed("the database of database.url does not answer");
            let found = Finding { check: "server", outcome, message };
            return vec![
                found,
                check("store", self.examine_store()).await,
                check("scratch", self.examine_scratch()).await,
            ];
        };
        vec![
            check("server", async { examine_server(&server) }).await,
            check("migrations", self.examine_migrations()).await,
            check("report role", self.examine_report_role(&server)).await,
            check("ending reports", async { examine_signals(&server) }).await,
            check("store", self.examine_store()).await,
            check("uploads", self.examine_uploads()).await,
            check("orphaned uploads", self.examine_orphaned_uploads()).await,
            check("clocks", self.examine_clocks()).await,
            check("work", self.examine_work()).await,
            check("backups", self.examine_backups()).await,
            check("policies", self.examine_policies()).await,
            check("scratch", self.examine_scratch()).await,
        ]
    }
    async fn examine_migrations(&self) -> Verdict {
        match schema::status(&self.db).await {
            Err(_) => failed("the list of applied migrations cannot be read"),
            Ok(all) => {
                let off = all.iter().find(|one| one.state != MigrationState::Applied);
                match off {
                    None => ok(format!("all {} are applied", all.len())),
                    Some(one) => failed(format!(
                        "{:04} ({}) is {}; see `registrar migrate status`",
                        one.version,
                        one.description,
                        match one.state {
                            MigrationState::Pending => "not applied",
                            MigrationState::Changed => "applied with another content",
                            MigrationState::Unknown => "unknown to this version",
                            MigrationState::Applied => "applied",
                        }
                    )),
                }
            }
        }
    }

    async fn examine_report_role(&self, server: &Server) -> Verdict {
        let limits = SessionLimits {
            timeout: PATIENCE,
            lock_timeout: PATIENCE,
            time_zone: "UTC".to_owned(),
        };
        match self.reports.find_open_doors(&limits, &server.role).await {
            Ok(doors) if doors.is_empty() => {
                ok(format!("`{}` logs in, and is refused all that it must not do", db::REPORT_ROLE))
            }
            Ok(doors) => failed(format!(
                "`{}` {}; run `registrar migrate up`, or migrations/roles/registrar_report.sql as \
                 an administrator",
                db::REPORT_ROLE,
                doors.join(", ")
            )),
            Err(error) => failed(format!(
                "`{}` cannot log in ({error}); check database.report_password, \
                 database.report_url and pg_hba.conf",
                db::REPORT_ROLE
            )),
        }
    }

    async fn examine_store(&self) -> Verdict {
        match self.check_store().await {
            Ok(()) => ok("an object was written, read back and deleted"),
            Err(problem) => failed(format!("{problem}; see store.url and the keys beside it")),
        }
    }

    async fn examine_uploads(&self) -> Verdict {
        match self.try_uploads().await {
            Ok(true) => ok("a multipart upload was completed, another taken back without a trace"),
            Ok(false) => failed("an upload that was taken back is visible in the store"),
            Err(error) => failed(format!("multipart uploads do not work: {error}")),
        }
    }

    /// Whether an aborted upload is invisible, after a completed one was found in a listing.
    async fn try_uploads(&self) -> Result<bool, StoreError> {
        let part = Bytes::from(vec![b'.'; PART_BYTES.max(self.store.part_bytes())]);
        let name = format!("{}-upload", uuid::Uuid::new_v4().simple());
        let path = ObjectKey::Probe(&name).path();
        for complete in [true, false] {
            let mut upload = self.store.upload(path.clone());
            let sent = async {
                upload.put(part.clone()).await?;
                upload.put(Bytes::from_static(b"end")).await
            };
            match sent.await {
                Ok(()) if complete => upload.complete().await?,
                Ok(()) => upload.abort().await,
                Err(error) => {
                    upload.abort().await;
                    return Err(error);
                }
            }
            if complete {
                let listed = self.store.list(ObjectKey::PROBES).await?;
                if !listed.iter().any(|object| object.location == path) {
                    return Err(StoreError::NotFound(path));
                }
                self.store.delete(&path).await?;
            }
        }
        Ok(matches!(self.store.head(&path).await, Err(StoreError::NotFound(_))))
    }

    /// Uploads that nobody ends: on an S3 server their parts are kept, and billed, for ever.
    async fn examine_orphaned_uploads(&self) -> Verdict {
        let (Ok(now), Ok(found)) =
            (diagnostics::clock(&self.db).await, self.store.list_unfinished(RESULTS_FOLDER).await)
        else {
            return warning("the store does not list unfinished uploads; ask its own tools");
        };
        let bound = TimeDelta::hours(self.config.store.sweep_after_hours.get().into());
        let old = found.iter().filter(|upload| now - upload.since > bound).count();
        match old {
            0 => ok(format!("{} unfinished, none older than {} h", found.len(), bound.num_hours())),
            _ => warning(format!(
                "{old} uploads are unfinished for over {} h; run `registrar store sweep`",
                bound.num_hours()
            )),
        }
    }

    async fn examine_backups(&self) -> Verdict {
        let (Ok(now), Ok(known)) =
            (diagnostics::clock(&self.db).await, backups::summary(&self.db).await)
        else {
            return failed("the backups cannot be read: is the schema up to date?");
        };
        let age_hours = |at: Option<f64>| at.map(|at| (now.timestamp() as f64 - at) / 3_600.0);
        let is_old = |at: Option<f64>, hours: f64| age_hours(at).is_some_and(|age| age > hours);
        let told = |at| age_hours(at).map_or("never".to_owned(), |age| format!("{age:.0} h ago"));
        let found = format!(
            "{} backups; the newest was made {}, one was last proven {}",
            known.backups,
            told(known.last_success),
            told(known.last_verified)
        );
        // Whether one was ever due is the policies' to say: see `examine_policies`.
        if is_old(known.last_success, OLD_BACKUP_HOURS) {
            warning(format!("{found}: none for {OLD_BACKUP_HOURS:.0} h"))
        } else if is_old(known.last_verified, OLD_PROOF_HOURS) {
            warning(format!("{found}: none was proven for {OLD_PROOF_HOURS:.0} h"))
        } else {
            ok(found)
        }
    }

    async fn examine_policies(&self) -> Verdict {
        match self.policies_behind().await {
            Ok(behind) if behind.is_empty() => ok("no run of a policy is overdue"),
            Ok(behind) => warning(format!("overdue: {}; is a worker running?", behind.join(", "))),
            Err(error) => failed(format!("{error}; see `registrar policy check`")),
        }
    }

    /// Where workbooks and dumps that are opened for a verification are put.
    async fn examine_scratch(&self) -> Verdict {
        let folder = std::env::temp_dir();
        match rustix::fs::statvfs(&folder) {
            Ok(disk) => {
                let free = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
                let found = format!("{free} MiB are free for temporary files");
                if free >= SCRATCH_MIB { ok(found) } else { warning(found) }
            }
            Err(error) => failed(format!("the folder of temporary files cannot be used: {error}")),
        }
    }

    async fn examine_clocks(&self) -> Verdict {
        // Asked anew: the comparison is of this moment.
        let Ok(now) = diagnostics::clock(&self.db).await else {
            return failed("the database does not answer");
        };
        let host = DateTime::<Utc>::from(SystemTime::now());
        let name = format!("{}-clock", uuid::Uuid::new_v4().simple());
        let path = ObjectKey::Probe(&name).path();
        let stamped = async {
            self.store.put(&path, Bytes::from_static(b"clock")).await?;
            let meta = self.store.head(&path).await?;
            self.store.delete(&path).await?;
            Ok::<_, StoreError>(meta.last_modified)
        };
        let Ok(store) = stamped.await else { return failed("the store does not tell its time") };
        // The store stamps whole seconds, and was asked later.
        let host_skew = (host - now).abs();
        let store_skew = (store - now).abs() - TimeDelta::seconds(1);
        let worst = host_skew.max(store_skew);
        let found = format!(
            "this machine differs from the database by {} ms, the store by {} s",
            host_skew.num_milliseconds(),
            store_skew.num_seconds().max(0)
        );
        if worst >= SKEW_TO_FAIL {
            failed(format!("{found}: signatures will be refused; mend time synchronisation"))
        } else if worst >= SKEW_TO_MENTION {
            warning(format!("{found}: look at time synchronisation"))
        } else {
            ok(found)
        }
    }

    async fn examine_work(&self) -> Verdict {
        let Ok(stuck) = diagnostics::stuck(&self.db).await else {
            return failed("the executions cannot be read: is the schema up to date?");
        };
        let mut faults = Vec::new();
        if stuck.abandoned > 0 {
            faults.push(format!("{} executions have lost their worker", stuck.abandoned));
        }
        if stuck.waiting > 0 {
            faults.push(format!("{} executions wait for over ten minutes", stuck.waiting));
        }
        if stuck.cancelling > 0 {
            faults.push(format!("{} executions cannot be cancelled", stuck.cancelling));
        }
        if stuck.live_workers == 0 {
            faults.push("no worker is running".to_owned());
        }
        match faults.is_empty() {
            true => ok(format!("{} workers, nothing stuck", stuck.live_workers)),
            false => warning(faults.join("; ")),
        }
    }
}

fn examine_server(server: &Server) -> Verdict {
    let (major, minor) = (server.version / 10_000, server.version % 10_000);
    let found = format!("PostgreSQL {major}.{minor}, connected as `{}`", server.role);
    match server.version >= OLDEST_SERVER {
        true => ok(found),
        false => failed(format!("{found}: version 15 or newer is needed")),
    }
}

fn examine_signals(server: &Server) -> Verdict {
    if server.can_end_reports {
        return ok("the application's role may cancel and end reports on the server");
    }
    failed(format!(
        "`{}` may not end the backends of `{}`: cancelling would wait for ever; grant {} to {}",
        server.role,
        db::REPORT_ROLE,
        db::REPORT_ROLE,
        server.role
    ))
}

/// Runs one check within its time.
async fn check(name: &'static str, examination: impl Future<Output = Verdict>) -> Finding {
    let (outcome, message) = tokio::time::timeout(PATIENCE, examination)
        .await
        .unwrap_or_else(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())));
    Finding { check: name, outcome, message }
}
