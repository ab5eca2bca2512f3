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
use crate::db::{self, diagnostics};
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
        let mut findings = vec![check("server", self.examine_server()).await];
        if findings.iter().any(|finding| finding.outcome == Outcome::Failed) {
            // Without the database the rest would only repeat that.
            findings.push(check("store", self.examine_store()).await);
            return findings;
        }
        findings.push(check("migrations", self.examine_migrations()).await);
        findings.push(check("report role", self.examine_report_role()).await);
        findings.push(check("ending reports", self.examine_signals()).await);
        findings.push(check("store", self.examine_store()).await);
        findings.push(check("uploads", self.examine_uploads()).await);
        findings.push(check("clocks", self.examine_clocks()).await);
        findings.push(check("work", self.examine_work()).await);
        findings
    }

    async fn examine_server(&self) -> Verdict {
        let Ok(server) = diagnostics::server(&self.db, db::REPORT_ROLE).await else {
            return failed("the database of database.url does not answer");
        };
        let (major, minor) = (server.version / 10_000, server.version % 10_000);
        let found = format!("PostgreSQL {major}.{minor}, connected as `{}`", server.role);
        match server.version >= OLDEST_SERVER {
            true => ok(found),
            false => failed(format!("{found}: version 15 or newer is needed")),
        }
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

    async fn examine_report_role(&self) -> Verdict {
        let Ok(server) = diagnostics::server(&self.db, db::REPORT_ROLE).await else {
            return failed("the database does not answer");
        };
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

    async fn examine_signals(&self) -> Verdict {
        match diagnostics::server(&self.db, db::REPORT_ROLE).await {
            Ok(server) if server.can_end_reports => {
                ok("the application's role may cancel and end reports on the server")
            }
            Ok(server) => failed(format!(
                "`{}` may not end the backends of `{}`: cancelling would wait for ever; grant {} \
                 to {}",
                server.role,
                db::REPORT_ROLE,
                db::REPORT_ROLE,
                server.role
            )),
            Err(_) => failed("the database does not answer"),
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

    async fn examine_clocks(&self) -> Verdict {
        let Ok(server) = diagnostics::server(&self.db, db::REPORT_ROLE).await else {
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
        let host_skew = (host - server.now).abs();
        let store_skew = (store - server.now).abs() - TimeDelta::seconds(1);
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

/// Runs one check within its time.
async fn check(name: &'static str, examination: impl Future<Output = Verdict>) -> Finding {
    let (outcome, message) = tokio::time::timeout(PATIENCE, examination)
        .await
        .unwrap_or_else(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())));
    Finding { check: name, outcome, message }
}
