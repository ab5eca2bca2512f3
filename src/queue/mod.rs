//! Tickets: the durable wake-up calls that travel through apalis.
//!
//! A ticket says "there is an execution to run", and which one it was pushed for; the worker that
//! gets it runs the one whose turn it is. apalis delivers it at least once; it may also lose or
//! double it. That does no harm, because the execution's row is the truth: a
//! ticket that finds nothing to claim ends quietly, and the reaper (see [`crate::worker`]) writes
//! a new one for an execution that waits without. Only this module and `worker` know apalis.

use apalis_postgres::PostgresStorage;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use ulid::Ulid;

use crate::db::executions;

/// A queue. The names are stored in rows: they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Executions of reports.
    Reports,
    /// Runs of lifecycle policies.
    Lifecycle,
    /// Housekeeping.
    Maintenance,
    /// Occurrences of schedules.
    Occurrences,
    /// Backups and their verification, which take long.
    Backups,
    /// Messages to webhooks.
    Deliveries,
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 6] = [
        Self::Reports,
        Self::Lifecycle,
        Self::Maintenance,
        Self::Occurrences,
        Self::Backups,
        Self::Deliveries,
    ];

    /// As stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reports => "reports",
            Self::Lifecycle => "lifecycle",
            Self::Maintenance => "maintenance",
            Self::Occurrences => "occurrences",
            Self::Backups => "backups",
            Self::Deliveries => "deliveries",
        }
    }
}

/// Payload of the `reports` queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportTicket {
    /// The execution that it was pushed for.
    pub execution_id: i64,
}

/// Payload of the `lifecycle` queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTicket {
    /// The run that it was pushed for.
    pub run_id: i64,
}

/// Payload of the `maintenance` queue: which housekeeping job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum MaintenanceTicket {
    /// Deletes results past their time.
    ExpireResults,
    /// Finds, and deletes, what is in the store for nobody.
    SweepStore,
    /// Forgets finished tickets, old keys and workers that are gone.
    Prune,
    /// Carries out erasures whose grace is over.
    CarryOutErasures,
    /// Starts runs of policies that are due.
    StartDueRuns,
    /// Looks at what policies have before them.
    LookAtBacklogs,
    /// Seals runs that ended without a certificate, and copies certificates to the store.
    SealCertificates,
}

/// Payload of the `occurrences` queue: what is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OccurrenceTicket {
    /// The schedule's name.
    pub schedule: String,
    /// When it was due.
    pub due_at: DateTime<Utc>,
}

/// Payload of the `backups` queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum BackupTicket {
    /// Makes a backup, and deletes those of the policy that have expired.
    Create {
        /// The policy.
        policy: String,
    },
    /// Proves a backup by restoring it.
    Verify {
        /// Which one; none: the newest of the policy.
        backup_id: Option<String>,
        /// The policy.
        policy: Option<String>,
    },
    /// Deletes backups of a policy that have expired.
    Prune {
        /// The policy.
        policy: String,
    },
}

/// Payload of the `deliveries` queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryTicket {
    /// The delivery.
    pub delivery_id: i64,
}

/// Pushes a ticket for a pending execution, in the caller's transaction.
///
/// # Errors
/// The database's.
pub async fn enqueue_execution(
    connection: &mut PgConnection,
    execution_id: i64,
    delay_secs: u128,
) -> Result<(), sqlx::Error> {
    let ticket = ReportTicket { execution_id };
    let ticket_id = push(connection, Queue::Reports, &ticket, delay_secs).await?;
    executions::note_ticket(connection, execution_id, &ticket_id).await
}

/// Pushes a ticket for a pending lifecycle run, in the caller's transaction, and returns its
/// number for the run's row.
///
/// # Errors
/// The database's.
pub async fn enqueue_run(
    connection: &mut PgConnection,
    run_id: i64,
    delay_secs: u128,
) -> Result<String, sqlx::Error> {
    push(connection, Queue::Lifecycle, &RunTicket { run_id }, delay_secs).await
}

/// Pushes a housekeeping job, in the caller's transaction.
///
/// # Errors
/// The database's.
pub async fn enqueue_maintenance(
    connection: &mut PgConnection,
    ticket: MaintenanceTicket,
) -> Result<(), sqlx::Error> {
    push(connection, Queue::Maintenance, &ticket, 0).await.map(|_| ())
}

/// Pushes a ticket for a pending occurrence, in the caller's transaction.
///
/// # Errors
/// The database's.
pub async fn enqueue_occurrence(
    connection: &mut PgConnection,
    ticket: OccurrenceTicket,
    delay_secs: i32,
) -> Result<(), sqlx::Error> {
    let delay_secs = u128::try_from(delay_secs).unwrap_or(0);
    push(connection, Queue::Occurrences, &ticket, delay_secs).await.map(|_| ())
}

/// Pushes a job of backups, in the caller's transaction.
///
/// # Errors
/// The database's.
pub async fn enqueue_backup(
    connection: &mut PgConnection,
    ticket: &BackupTicket,
) -> Result<(), sqlx::Error> {
    push(connection, Queue::Backups, ticket, 0).await.map(|_| ())
}

/// Pushes a ticket for a pending delivery, in the caller's transaction.
///
/// # Errors
/// The database's.
pub async fn enqueue_delivery(
    connection: &mut PgConnection,
    delivery_id: i64,
) -> Result<(), sqlx::Error> {
    push(connection, Queue::Deliveries, &DeliveryTicket { delivery_id }, 0).await.map(|_| ())
}

async fn push<T: Serialize + Sync>(
    connection: &mut PgConnection,
    queue: Queue,
    ticket: &T,
    delay_secs: u128,
) -> Result<String, sqlx::Error> {
    // Written by hand and not by `apalis_postgres::queries::push_tasks`, because that takes
    // `run_at` from the clock of this machine: a worker whose clock is behind the server's would
    // push tickets that nobody is told of. The columns and the encoding are the library's own
    // (JSON bytes under a ULID), and its trigger notifies.
    let payload = serde_json::to_vec(ticket).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let id = Ulid::generate().to_string();
    sqlx::query(
        "insert into apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at)
         values ($1, $2, $3, 'Pending', 0, 1, now() + make_interval(secs => $4))",
    )
    .bind(&id)
    .bind(queue.name())
    .bind(payload)
    .bind(f64::from(u32::try_from(delay_secs).unwrap_or(u32::MAX)))
    .execute(connection)
    .await?;
    Ok(id)
}

/// What is in a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Depth {
    /// Tickets that a worker may take now, parked ones among them.
    pub waiting: i64,
    /// Tickets for later.
    pub delayed: i64,
    /// Tickets that workers have in hand.
    pub running: i64,
    /// How long the oldest has been waiting.
    pub oldest_waiting_seconds: f64,
}

/// What is in each queue that has a ticket.
///
/// # Errors
/// The database's.
pub async fn depths(pool: &PgPool) -> Result<Vec<(Queue, Depth)>, sqlx::Error> {
    let rows: Vec<(String, i64, i64, i64, f64)> = sqlx::query_as(
        "select job_type,
                count(*) filter (where status = 'Pending' and (run_at <= now() or run_at = $1)),
                count(*) filter (where status = 'Pending' and run_at > now() and run_at <> $1),
                count(*) filter (where status in ('Queued', 'Running')),
                coalesce(extract(epoch from now() - min(run_at)
                    filter (where status = 'Pending' and run_at <= now())), 0)::float8
           from apalis.jobs
          where status in ('Pending', 'Queued', 'Running')
          group by job_type",
    )
    .bind(parked_until())
    .fetch_all(pool)
    .await?;
    let depth =
        |(name, waiting, delayed, running, oldest_waiting_seconds): (String, _, _, _, _)| {
            let queue = Queue::ALL.into_iter().find(|queue| queue.name() == name)?;
            Some((queue, Depth { waiting, delayed, running, oldest_waiting_seconds }))
        };
    Ok(rows.into_iter().filter_map(depth).collect())
}

/// The time of tickets that wait for their queue to be resumed: no worker lives so long.
fn parked_until() -> DateTime<Utc> {
    DateTime::from_timestamp(253_370_764_800, 0).expect("the year 9999")
}

/// Pushes a ticket that waits for its queue to be resumed. `false`: the queue is not paused, and
/// nothing was pushed. The lock on the pause keeps a resume from missing the ticket.
///
/// # Errors
/// The database's.
pub async fn park_if_paused(pool: &PgPool, ticket: &BackupTicket) -> Result<bool, sqlx::Error> {
    let payload = serde_json::to_vec(ticket).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let parked = sqlx::query(
        "insert into apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at)
         select $1, paused.queue, $3, 'Pending', 0, 1, $4
           from (select queue from queue_pauses where queue = $2 for share) paused",
    )
    .bind(Ulid::generate().to_string())
    .bind(Queue::Backups.name())
    .bind(payload)
    .bind(parked_until())
    .execute(pool)
    .await?;
    Ok(parked.rows_affected() > 0)
}

/// Lets parked tickets go, in the transaction that resumes their queue.
///
/// # Errors
/// The database's.
pub async fn unpark(connection: &mut PgConnection, queue: Queue) -> Result<u64, sqlx::Error> {
    let unparked = sqlx::query(
        "update apalis.jobs set run_at = now()
          where job_type = $1 and status = 'Pending' and run_at = $2",
    )
    .bind(queue.name())
    .bind(parked_until())
    .execute(connection)
    .await?;
    Ok(unparked.rows_affected())
}

/// Runs the queue's own migrations and adds the indexes that its statements lack. Needs CREATE on
/// the database and the extensions hstore and pgcrypto.
///
/// # Errors
/// The database's.
pub async fn create_tables(pool: &PgPool) -> Result<(), sqlx::Error> {
    PostgresStorage::<()>::migrations().run(pool).await?;
    // The heartbeat of every worker looks for running rows: 127 ms at a million finished ones
    // without the first index. Pruning looks for old finished ones: the second.
    sqlx::raw_sql(
        "create index if not exists registrar_jobs_running on apalis.jobs (lock_by)
          where status = 'Running' or status = 'Queued';
         create index if not exists registrar_jobs_done_at on apalis.jobs (done_at)
          where done_at is not null;",
    )
    .execute(pool)
    .await?;
    sqlx::raw_sql(TAKE_FROM_MARKS).execute(pool).await?;
    Ok(())
}

/// The library's own function, but for the lines with the mark and the priority, which all tickets
/// have. No ticket of a queue waits that is due before the queue's mark, so the entries of those
/// that were taken are not read again and again: while a backup's snapshot is open, they cannot be
/// removed. A mark is a sequence, because that leaves no dead rows, in milliseconds.
const TAKE_FROM_MARKS: &str = "
    create sequence if not exists apalis.registrar_mark_reports;
    create sequence if not exists apalis.registrar_mark_lifecycle;
    create sequence if not exists apalis.registrar_mark_maintenance;
    create sequence if not exists apalis.registrar_mark_occurrences;
    create sequence if not exists apalis.registrar_mark_backups;
    create sequence if not exists apalis.registrar_mark_deliveries;
    create or replace function apalis.registrar_mark(queue text)
    returns timestamp with time zone
    language sql volatile
    as $$
        select coalesce(to_timestamp(pg_sequence_last_value(
                            to_regclass('apalis.registrar_mark_' || queue)) / 1000.0),
                        '-infinity')
    $$;
    create or replace function apalis.get_jobs(
        worker_id text, v_job_type text, v_job_count integer default 5)
    returns setof apalis.jobs
    language sql volatile
    as $$
        with jobs as (
            select id
              from apalis.jobs
             where (status = 'Pending' or (status = 'Failed' and attempts < max_attempts))
               and run_at < now() and job_type = v_job_type
               and priority = 0 and run_at >= (select apalis.registrar_mark(v_job_type))
             order by priority desc, run_at
             limit v_job_count
               for update skip locked
        )
        update apalis.jobs j
           set status = 'Queued', lock_by = worker_id, lock_at = now()
          from jobs
         where j.id = jobs.id
        returning j.*
    $$";

/// Moves the marks before which no ticket waits, `slack_secs` behind now at most, and never past the
/// beginning of a transaction that writes: its tickets have that time, however late it commits (a
/// backup's writes nothing). From ten seconds before each mark on, and every fifteenth time or so from
/// the beginning: a ticket before the mark is found then, or written anew by the reaper.
///
/// # Errors
/// The database's.
pub async fn move_marks(pool: &PgPool, slack_secs: i32) -> Result<(), sqlx::Error> {
    sqlx::query(
        "select setval(to_regclass('apalis.registrar_mark_' || queue.name),
                       floor(extract(epoch from least(
                           (select min(j.run_at)
                              from apalis.jobs j
                             where (j.status = 'Pending'
                                    or (j.status = 'Failed' and j.attempts < j.max_attempts))
                               and j.job_type = queue.name and j.priority = 0
                               and j.run_at >= queue.looked_from),
                           now() - make_interval(secs => $2),
                           (select min(a.xact_start)
                              from pg_stat_activity a
                             where a.datname = current_database()
                               and a.backend_xid is not null))) * 1000)::bigint)
           from (select name,
                        case when random() < 1 / 15.0 then '-infinity'
                             else apalis.registrar_mark(name) - interval '10 seconds' end
                            as looked_from
                   from unnest($1::text[]) as names (name)
                 offset 0) queue
          where to_regclass('apalis.registrar_mark_' || queue.name) is not null",
    )
    .bind(Queue::ALL.map(Queue::name).as_slice())
    .bind(f64::from(slack_secs))
    .execute(pool)
    .await?;
    Ok(())
}

/// Drops the queue's tables. Nothing is lost: the reaper writes new tickets.
///
/// # Errors
/// The database's.
pub async fn drop_tables(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("drop schema if exists apalis cascade").execute(pool).await?;
    Ok(())
}

/// Empties the queue: after a restore its tickets are of the past, and the reaper writes new ones.
/// Returns how many went; a database without the queue's tables has none.
///
/// # Errors
/// The database's.
pub async fn forget_tickets(pool: &PgPool) -> Result<u64, sqlx::Error> {
    let known: bool =
        sqlx::query_scalar("select to_regclass('apalis.jobs') is not null").fetch_one(pool).await?;
    if !known {
        return Ok(0);
    }
    let deleted = sqlx::query("delete from apalis.jobs").execute(pool).await?;
    sqlx::query("delete from apalis.workers").execute(pool).await?;
    Ok(deleted.rows_affected())
}

/// Deletes at most `limit` tickets that ended more than `minutes` ago, and forgets the queue's
/// own workers that were not seen for a day.
///
/// # Errors
/// The database's.
pub async fn prune(pool: &PgPool, minutes: i32, limit: i64) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query(
        "delete from apalis.jobs
          where id in (select id
                         from apalis.jobs
                        where done_at < now() - make_interval(mins => $1)
                        order by done_at
                        limit $2)",
    )
    .bind(minutes)
    .bind(limit)
    .execute(pool)
    .await?;
    sqlx::query(
        "delete from apalis.workers w
          where w.last_seen < now() - interval '1 day'
            and not exists (select from apalis.jobs j where j.lock_by = w.id)",
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
