//! Tries, as the report role, what a report must never be able to do.
//!
//! The rights of a role are easy to get wrong and impossible to see: the only proof that a door is
//! shut is to push it. Each trial runs in a savepoint of one read-only transaction, which is rolled
//! back, so that a door that stands open does no harm either.

use sqlx::Executor;

use super::{ReportDatabase, Session, SessionLimits};
use crate::report::error::ReportError;

/// Something that must be refused, and the statement that tries it.
const MUST_FAIL: &[(&str, &str)] = &[
    ("read API tokens", "select count(*) from public.api_tokens"),
    ("read executions", "select count(*) from public.report_executions"),
    ("read the queue", "select count(*) from apalis.jobs"),
    ("read password hashes of the server", "select count(*) from pg_catalog.pg_authid"),
    ("read files of the server", "select pg_catalog.pg_read_file('PG_VERSION')"),
    ("make the transaction writable", "select set_config('transaction_read_only', 'off', false)"),
    ("write", "create temporary table registrar_doctor (n integer)"),
];

/// What the role is beside its login, each of which would be a way out.
const ROLE_FAULTS: &str = "
    select fault
      from pg_catalog.pg_roles r
     cross join lateral (values
            (r.rolsuper, 'is a superuser'),
            (r.rolcreaterole, 'may create roles'),
            (r.rolcreatedb, 'may create databases'),
            (r.rolreplication, 'may replicate'),
            (r.rolbypassrls, 'bypasses row security'),
            (exists (select from pg_catalog.pg_auth_members m where m.member = r.oid),
             'is a member of another role')) faults (is_so, fault)
     where r.rolname = session_user and is_so";

impl ReportDatabase {
    /// What the role can do and must not, in words; empty when its limits hold. `application_role`
    /// is the role that it must not be able to become.
    ///
    /// # Errors
    /// The role cannot log in, or the server went away.
    pub async fn find_open_doors(
        &self,
        limits: &SessionLimits,
        application_role: &str,
    ) -> Result<Vec<String>, ReportError> {
        let mut session = self.begin(limits, "registrar doctor").await?;
        let found = session.find_open_doors(application_role).await;
        session.close().await;
        Ok(found?)
    }
}

impl Session {
    async fn find_open_doors(&mut self, application: &str) -> Result<Vec<String>, sqlx::Error> {
        let mut found: Vec<String> =
            sqlx::query_scalar(ROLE_FAULTS).fetch_all(&mut self.connection).await?;
        for (what, statement) in MUST_FAIL {
            if self.passes(sqlx::query(*statement)).await? {
                found.push(format!("can {what}"));
            }
        }
        let become_application = "select set_config('role', $1, true)";
        if self.passes(sqlx::query(become_application).bind(application)).await? {
            found.push("can become the application's role".to_owned());
        }
        Ok(found)
    }

    /// Whether the server lets a statement pass. Only an answer of the server is an answer: a
    /// lost connection is an error, not a refusal.
    async fn passes(
        &mut self,
        statement: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<bool, sqlx::Error> {
        self.connection.execute("savepoint trial").await?;
        let passed = match statement.persistent(false).execute(&mut self.connection).await {
            Ok(_) => true,
            Err(sqlx::Error::Database(_)) => false,
            Err(error) => return Err(error),
        };
        self.connection.execute("rollback to savepoint trial").await?;
        Ok(passed)
    }
}
