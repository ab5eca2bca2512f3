//! One attempt: claim → work, with a heartbeat beside it → settle.
//!
//! The claim is committed at once and no transaction stays open over the work. Everything an
//! attempt writes carries its number: when the attempt is no longer the current one, its file is
//! dropped and nothing else happens.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::Instrument;

use super::{Context, reaper};
use crate::db::accounts;
use crate::db::audit::{self, Actor};
use crate::db::definitions;
use crate::db::executions::{self, Backend, BackendSignal, Beat, Claimed, Published, Status};
use crate::queue::{self, Queue};
use crate::report::definition::Definition;
use crate::report::error::ReportError;
use crate::report::layout::RunLabel;
use crate::report::manifest::{Manifest, ManifestColumn, ManifestSheet};
use crate::report::parameters::BoundParameters;
use crate::report::pipeline::{Destination, Watch};
use crate::report::{self, Exported, Limits, Order, Presentation};
use crate::service::results::file_name;
use crate::service::sharing::end_followers;
use crate::store::key::attempt_folder;
use crate::store::{AttemptKey, ObjectKey, ObjectPath};

/// How often a running attempt looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Heartbeats per lease: two may be lost.
const BEATS_PER_LEASE: u32 = 3;
/// How long an attempt that was told to stop may take to do so.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an outage of the database may delay the end of an attempt; afterwards the reaper ends
/// it in our place.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest pause before a failed attempt is tried again.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(300);
/// A cancelled query that has not ended after this long loses its connection.
const CANCEL_PATIENCE: Duration = Duration::from_millis(1500);

/// Why a running attempt is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopReason {
    /// Somebody cancelled the execution.
    Cancelled,
    /// The attempt is another worker's now.
    Lost,
    /// This process ends.
    Draining,
}

/// A finished file, not yet published.
struct Finished {
    exported: Exported,
    path: ObjectPath,
    expires_after_days: i32,
}

/// Runs the next attempt of the execution whose turn it is, if one waits.
pub async fn run(context: &Context) {
    let claimed = executions::claim_next(
        &context.services.db,
        &context.worker_id,
        lease_secs(context),
        context.caps(),
    )
    .await;
    let claimed = match claimed {
        Ok(Some(claimed)) => claimed,
        Ok(None) => {
            tracing::debug!("nothing may start: a doubled or late ticket, caps, or a pause");
            if !context.may_take(Queue::Reports).await
                && let Err(error) = executions::park_one(&context.services.db).await
            {
                tracing::debug!(%error, "the reaper finds the ticket lost, later");
            }
            return;
        }
        Err(error) => {
            // The reaper writes a new ticket.
            tracing::warn!(%error, "cannot claim");
            return;
        }
    };
    let span = tracing::info_span!(
        "attempt",
        execution.id = claimed.id,
        attempt = claimed.attempt,
        trace_id = claimed.trace_id.as_deref(),
    );
    run_claimed(context, claimed).instrument(span).await;
    call_next(context).await;
}

/// A place is free: whoever a cap has kept back gets a ticket. The reaper does the same, later.
async fn call_next(context: &Context) {
    let called = async {
        if executions::any_is_parked(&context.services.db).await? {
            reaper::reissue(context).await?;
        }
        anyhow::Ok(())
    };
    if let Err(error) = called.await {
        tracing::debug!(error = format!("{error:#}"), "the reaper calls the next instead");
    }
}

async fn run_claimed(context: &Context, claimed: Claimed) {
    let began = Instant::now();
    let watch = Arc::new(Watch::default());
    // A task of its own: a panic ends the attempt, not the worker.
    let mut work =
        tokio::spawn(work(context.clone(), claimed.clone(), Arc::clone(&watch)).in_current_span());
    let (reason, outcome) = tokio::select! {
        joined = &mut work => (None, joined.unwrap_or(Err(ReportError::Panicked))),
        reason = supervise(context, &claimed, &watch) => {
            watch.stop.cancel();
            let stopped = tokio::select! {
                stopped = tokio::time::timeout(STOP_TIMEOUT, &mut work) => stopped,
                never = keep_lease(context, &claimed, &watch) => match never {},
            };
            if stopped.is_err() {
                work.abort();
            }
            let outcome = match stopped {
                Ok(joined) => joined.unwrap_or(Err(ReportError::Panicked)),
                Err(_) => Err(ReportError::Stopped),
            };
            (Some(reason), outcome)
        }
    };
    settle_patiently(context, &claimed, reason, &outcome, began).await;
}

/// Renews the lease, and returns when the attempt must stop.
async fn supervise(context: &Context, claimed: &Claimed, watch: &Watch) -> StopReason {
    let db = &context.services.db;
    let (id, attempt) = (claimed.id, claimed.attempt);
    let beat_every = context.services.config.worker.lease() / BEATS_PER_LEASE;
    let mut last_beat = Instant::now();
    loop {
        tokio::select! {
            () = context.abort.cancelled() => return StopReason::Draining,
            () = tokio::time::sleep(LOOK_EVERY.min(beat_every)) => {}
        }
        let beat = if last_beat.elapsed() >= beat_every {
            let beat = beat(context, claimed, watch).await;
            if beat.is_ok() {
                last_beat = Instant::now();
            }
            beat
        } else {
            executions::look(db, id, attempt).await
        };
        match beat {
            Ok(Beat::Renewed) => {}
            Ok(Beat::Cancelling) => return StopReason::Cancelled,
            Ok(Beat::Lost) => return StopReason::Lost,
            // The work may still succeed: publishing is guarded, so going on does no harm.
            Err(error) => tracing::warn!(%error, "cannot renew the lease"),
        }
    }
}

/// Renews the lease of an attempt that is stopping: what it takes back from the store may take
/// longer than a lease, and a rescue meanwhile would count as a failure.
async fn keep_lease(context: &Context, claimed: &Claimed, watch: &Watch) -> Infallible {
    loop {
        if let Err(error) = beat(context, claimed, watch).await {
            tracing::warn!(%error, "cannot renew the lease");
        }
        tokio::time::sleep(context.services.config.worker.lease() / BEATS_PER_LEASE).await;
    }
}

async fn beat(context: &Context, claimed: &Claimed, watch: &Watch) -> Result<Beat, sqlx::Error> {
    let rows = count(watch.rows.load(Ordering::Relaxed));
    let bytes = count(watch.bytes.load(Ordering::Relaxed));
    let (db, lease_secs) = (&context.services.db, lease_secs(context));
    executions::heartbeat(db, claimed.id, claimed.attempt, lease_secs, rows, bytes).await
}

/// Makes the file and its manifest.
async fn work(
    context: Context,
    claimed: Claimed,
    watch: Arc<Watch>,
) -> Result<Finished, ReportError> {
    let services = &context.services;
    let (definition, version, digest) = load_definition(&context, &claimed).await?;
    let parameters = load_parameters(&definition, &claimed)?;
    let order = Order {
        definition: &definition,
        parameters: &parameters,
        format: claimed.format.parse().map_err(bad_definition)?,
        presentation: serde_json::from_value::<Presentation>(claimed.options.clone())
            .map_err(bad_definition)?,
        limits: Limits::of(&definition, &services.config.report),
        name: executions::connection_name(claimed.id, claimed.attempt),
    };
    let file_type = order.presentation.file_type(order.format).map_err(bad_definition)?;
    let opened = tokio::select! {
        opened = report::open(&services.reports, &order) => opened?,
        () = watch.stop.cancelled() => return Err(ReportError::Stopped),
    };
    let opened = opened.labelled(label(&context, &claimed).await?);
    // Before the query runs, so that a cancel from any process can end it.
    let process = opened.backend();
    let backend = Backend {
        id: claimed.id,
        attempt: claimed.attempt,
        backend_pid: Some(process.pid),
        backend_start: Some(process.started_at),
    };
    let noted = executions::note_backend(&services.db, backend).await;
    if !noted.map_err(ReportError::Unavailable)? {
        return Err(ReportError::Stopped);
    }
    let key = attempt_key(&claimed, &definition);
    let path = ObjectKey::Result { attempt: key, extension: file_type.extension() }.path();
    let mut destination = Destination::Store(services.store.upload(path.clone()));
    let exported =
        opened.export(&order, services.store.part_bytes(), &mut destination, &watch).await?;
    let is_cut = exported.written.truncated.is_some();
    let name = file_name(definition.slug().as_str(), claimed.id, file_type, is_cut);
    let manifest = manifest(&context, &claimed, &order, name, version, digest, &exported).await;
    let document = serde_json::to_vec_pretty(&manifest).map_err(bad_definition)?;
    let manifest_path = ObjectKey::Manifest(key).path();
    tokio::select! {
        stored = services.store.put(&manifest_path, document.into()) => stored?,
        () = watch.stop.cancelled() => return Err(ReportError::Stopped),
    }
    let days =
        definition.expires_after_days().unwrap_or(services.config.report.expires_after_days).get();
    Ok(Finished { exported, path, expires_after_days: i32::try_from(days).unwrap_or(i32::MAX) })
}

async fn load_definition(
    context: &Context,
    claimed: &Claimed,
) -> Result<(Definition, i32, String), ReportError> {
    let version = claimed
        .definition_version
        .ok_or_else(|| ReportError::Definition("the execution names no version".to_owned()))?;
    let stored =
        definitions::find_version(&context.services.db, claimed.report_definition_id, version)
            .await
            .map_err(ReportError::Unavailable)?
            .ok_or_else(|| ReportError::Definition("the version is gone".to_owned()))?;
    let slug = stored.slug.parse().map_err(bad_definition)?;
    let definition =
        Definition::from_json(slug, &stored.spec, &stored.query).map_err(bad_definition)?;
    Ok((definition, version, stored.content_sha256))
}

/// What titles say of the execution.
async fn label(context: &Context, claimed: &Claimed) -> Result<RunLabel, ReportError> {
    let owner = match claimed.executed_by {
        Some(id) => accounts::find_username(&context.services.db, id)
            .await
            .map_err(ReportError::Unavailable)?,
        None => None,
    };
    Ok(RunLabel { execution: Some(claimed.id), owner })
}

fn load_parameters(
    definition: &Definition,
    claimed: &Claimed,
) -> Result<BoundParameters, ReportError> {
    let stored = claimed.parameters.clone().unwrap_or_else(|| json!({}));
    BoundParameters::from_canonical(definition, &stored).map_err(|errors| {
        let names: Vec<_> = errors.iter().map(|error| error.pointer.as_str()).collect();
        ReportError::Definition(format!("stored parameters do not fit: {}", names.join(", ")))
    })
}

fn bad_definition(error: impl std::fmt::Display) -> ReportError {
    ReportError::Definition(error.to_string())
}

fn attempt_key<'a>(claimed: &Claimed, definition: &'a Definition) -> AttemptKey<'a> {
    AttemptKey {
        created_at: claimed.created_at,
        execution: claimed.id,
        attempt: claimed.attempt,
        slug: definition.slug().as_str(),
    }
}

async fn manifest(
    context: &Context,
    claimed: &Claimed,
    order: &Order<'_>,
    file_name: String,
    definition_version: i32,
    definition_sha256: String,
    exported: &Exported,
) -> Manifest {
    let written = &exported.written;
    let slug = order.definition.slug().as_str();
    let elapsed = sqlx::query_scalar::<_, f64>(
        "select extract(epoch from clock_timestamp() - $1)::float8 * 1000",
    )
    .bind(claimed.started_at)
    .fetch_one(&context.services.db)
    .await;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast from a float saturates"
    )]
    let duration_ms = elapsed.unwrap_or_default() as u64;
    Manifest {
        execution_id: claimed.id,
        attempt: claimed.attempt,
        format_of: claimed.format_of,
        report: slug.to_owned(),
        definition_version,
        definition_sha256,
        parameters: order.parameters.canonical_json(),
        file_name,
        format: order.format,
        compression: order.presentation.compression,
        reader: order.presentation.reader,
        time_zone: order.definition.time_zone().name().to_owned(),
        columns: manifest_columns(exported, 0),
        row_count: written.summary.rows,
        sheets: written.summary.sheets,
        sheet_list: sheet_list(order, exported),
        sheets_left_out: order
            .definition
            .sheets()
            .skip(exported.sheets.len())
            .map(|sheet| sheet.name.to_owned())
            .collect(),
        size_bytes: written.size_bytes,
        sha256: written.sha256.clone(),
        truncated: written.truncated.clone(),
        adjusted_cells: written.summary.adjusted.clone(),
        snapshot_at: exported.snapshot.taken_at,
        snapshot_lsn: exported.snapshot.lsn.clone(),
        started_at: claimed.started_at,
        duration_ms,
        worker: context.worker_id.to_string(),
        trace_id: claimed.trace_id.clone(),
        peak_memory_bytes: peak_memory_bytes(),
        registrar_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The sheets of the file; of a format without sheets, its rows as one.
fn sheet_list(order: &Order<'_>, exported: &Exported) -> Vec<ManifestSheet> {
    let summary = &exported.written.summary;
    if summary.sheet_list.is_empty() {
        let name = order.definition.main_sheet_name().to_owned();
        let (rows, columns) = (summary.rows, manifest_columns(exported, 0));
        return vec![ManifestSheet { name, rows, columns, header_row: None }];
    }
    let sheets = summary.sheet_list.iter().map(|sheet| ManifestSheet {
        name: sheet.name.clone(),
        rows: sheet.rows,
        columns: manifest_columns(exported, sheet.source),
        header_row: Some(sheet.header_row),
    });
    sheets.collect()
}

/// The columns of a sheet, from 0.
fn manifest_columns(exported: &Exported, sheet: usize) -> Vec<ManifestColumn> {
    let columns = exported.sheets.get(sheet).map_or(&[][..], Vec::as_slice);
    let columns = columns.iter().map(|(source, column)| ManifestColumn {
        name: column.name.clone(),
        label: column.label.clone(),
        postgres_type: source.type_name.clone(),
        kind: column.kind,
    });
    columns.collect()
}

/// The largest resident set of this process so far, where `/proc` tells it.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Settles, and sits out an outage of the database while doing so.
async fn settle_patiently(
    context: &Context,
    claimed: &Claimed,
    reason: Option<StopReason>,
    outcome: &Result<Finished, ReportError>,
    began: Instant,
) {
    let give_up = Instant::now() + SETTLE_TIMEOUT;
    let mut pause = Duration::from_millis(200);
    loop {
        match settle(context, claimed, reason, outcome).await {
            Ok(label) => {
                metrics::histogram!(
                    "registrar_execution_duration_seconds",
                    "format" => claimed.format.clone(), "outcome" => label
                )
                .record(began.elapsed().as_secs_f64());
                metrics::counter!("registrar_attempts_total", "outcome" => label).increment(1);
                return;
            }
            Err(error) if Instant::now() < give_up => {
                tracing::warn!(%error, "cannot settle the attempt yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            Err(error) => {
                tracing::error!(%error, "cannot settle the attempt: the reaper will");
                return;
            }
        }
    }
}

/// Brings the row where the outcome says, in one guarded statement with its audit row. May be
/// called again after an error: whatever it did is either committed or was never there.
async fn settle(
    context: &Context,
    claimed: &Claimed,
    reason: Option<StopReason>,
    outcome: &Result<Finished, ReportError>,
) -> Result<&'static str, sqlx::Error> {
    if let Ok(finished) = outcome
        && publish(context, claimed, finished).await?
    {
        return Ok("completed");
    }
    // Not published: what was written is nobody's.
    drop_files(context, claimed, claimed.attempt).await;
    let db = &context.services.db;
    match (reason, outcome) {
        (Some(StopReason::Lost), _) => {
            tracing::warn!("the attempt is another worker's now: its file is dropped");
            Ok("lost")
        }
        (Some(StopReason::Cancelled), _) => finish_cancel(context, claimed).await,
        // The cancel may have ended the query before the heartbeat knew of it.
        _ if executions::look(db, claimed.id, claimed.attempt).await? == Beat::Cancelling => {
            finish_cancel(context, claimed).await
        }
        (Some(StopReason::Draining), Err(ReportError::Stopped)) => {
            give_back(context, claimed).await
        }
        (_, Err(error)) => end_with_error(context, claimed, error).await,
        (_, Ok(_)) => Ok("lost"),
    }
}

async fn publish(
    context: &Context,
    claimed: &Claimed,
    finished: &Finished,
) -> Result<bool, sqlx::Error> {
    let written = &finished.exported.written;
    let published = Published {
        path: finished.path.as_ref(),
        row_count: count(written.summary.rows),
        size_bytes: count(written.size_bytes),
        sha256: &written.sha256,
        truncated: written.truncated.is_some(),
        snapshot_at: finished.exported.snapshot.taken_at,
        expires_after_days: finished.expires_after_days,
    };
    let mut tx = context.services.db.begin().await?;
    if !executions::publish(&mut tx, claimed.id, claimed.attempt, &published).await? {
        // After a commit whose answer was lost, this is the second call: the row is ours.
        return is_published(&mut tx, claimed, published.path).await;
    }
    let details = json!({
        "attempt": claimed.attempt, "rows": published.row_count,
        "size_bytes": published.size_bytes, "sha256": published.sha256,
        "truncated": published.truncated,
    });
    record(&mut tx, claimed, "execution.completed", details).await?;
    end_followers(&mut tx, claimed.id, Status::Completed).await?;
    tx.commit().await?;
    metrics::counter!(
        "registrar_executions_finished_total", "outcome" => "completed", "code" => ""
    )
    .increment(1);
    for (what, count) in [
        ("registrar_result_rows_total", published.row_count),
        ("registrar_result_bytes_total", published.size_bytes),
    ] {
        metrics::counter!(what, "format" => claimed.format.clone())
            .increment(u64::try_from(count).unwrap_or(0));
    }
    tracing::info!(
        rows = published.row_count,
        size_bytes = published.size_bytes,
        "completed execution {}",
        claimed.id
    );
    // What attempts left behind that could not clean up after themselves.
    for earlier in 1..claimed.attempt {
        drop_files(context, claimed, earlier).await;
    }
    Ok(true)
}

async fn is_published(
    connection: &mut PgConnection,
    claimed: &Claimed,
    path: &str,
) -> Result<bool, sqlx::Error> {
    let current = executions::find(connection, claimed.id).await?;
    Ok(current.is_some_and(|execution| execution.result_file_path.as_deref() == Some(path)))
}

/// cancelling → cancelled, once the server's process is gone; it is helped along.
async fn finish_cancel(context: &Context, claimed: &Claimed) -> Result<&'static str, sqlx::Error> {
    let db = &context.services.db;
    if let Some(backend) = executions::backend_of(db, claimed.id, claimed.attempt).await? {
        end_backend(context, backend).await?;
    }
    let mut tx = db.begin().await?;
    if executions::finish_cancel(&mut tx, claimed.id, claimed.attempt).await? {
        record(&mut tx, claimed, "execution.cancelled", json!({ "attempt": claimed.attempt }))
            .await?;
        metrics::counter!(
            "registrar_executions_finished_total", "outcome" => "cancelled", "code" => ""
        )
        .increment(1);
    }
    tx.commit().await?;
    tracing::info!("cancelled execution {}", claimed.id);
    Ok("cancelled")
}

/// Waits until a server process is gone: first asking, then insisting. Bounded; if it will not
/// go, the lease runs out and the reaper goes on.
async fn end_backend(context: &Context, backend: Backend) -> Result<(), sqlx::Error> {
    let services = &context.services;
    let insist_at = Instant::now() + CANCEL_PATIENCE;
    let give_up = insist_at + STOP_TIMEOUT;
    services.signal_backend(backend, BackendSignal::Cancel).await?;
    while services.signal_backend(backend, BackendSignal::Probe).await? {
        if Instant::now() > give_up {
            return Err(sqlx::Error::PoolTimedOut);
        }
        if Instant::now() > insist_at {
            services.signal_backend(backend, BackendSignal::Terminate).await?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// processing → pending at a deploy, with a new ticket; costs the execution nothing.
async fn give_back(context: &Context, claimed: &Claimed) -> Result<&'static str, sqlx::Error> {
    let mut tx = context.services.db.begin().await?;
    if executions::give_back(&mut tx, claimed.id, claimed.attempt).await? {
        queue::enqueue_execution(&mut tx, claimed.id, 0).await?;
        record(&mut tx, claimed, "execution.given_back", json!({ "attempt": claimed.attempt }))
            .await?;
    }
    tx.commit().await?;
    tracing::info!("gave execution {} back to the queue", claimed.id);
    Ok("given_back")
}

/// processing → pending with a pause where another try can help, otherwise → failed.
async fn end_with_error(
    context: &Context,
    claimed: &Claimed,
    error: &ReportError,
) -> Result<&'static str, sqlx::Error> {
    let (code, message) = (error.code(), error.public_message());
    let retried = error.is_transient() && claimed.failed_attempts + 1 < claimed.max_attempts;
    let mut tx = context.services.db.begin().await?;
    let (id, attempt) = (claimed.id, claimed.attempt);
    let details = json!({ "attempt": attempt, "code": code });
    if retried {
        let pause = retry_pause(context, claimed.failed_attempts);
        let secs = pause.as_secs_f64();
        if executions::retry_later(&mut tx, id, attempt, code, &message, secs).await? {
            // Rounded up: a ticket that comes before `run_at` finds nothing to claim.
            queue::enqueue_execution(&mut tx, id, pause.as_millis().div_ceil(1000)).await?;
            record(&mut tx, claimed, "execution.retried", details).await?;
        }
    } else if executions::fail(&mut tx, id, attempt, code, &message).await? {
        record(&mut tx, claimed, "execution.failed", details).await?;
        end_followers(&mut tx, id, Status::Failed).await?;
        metrics::counter!(
            "registrar_executions_finished_total", "outcome" => "failed", "code" => code
        )
        .increment(1);
    }
    tx.commit().await?;
    tracing::warn!(code, error = chain(error), retried, "execution {id} attempt {attempt} failed");
    Ok(if retried { "retried" } else { "failed" })
}

/// The causes of an error, for the log. A server's own message is left out: it can quote values.
fn chain(error: &ReportError) -> String {
    let mut text = error.public_message();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let database = cause.downcast_ref::<sqlx::Error>().and_then(|e| e.as_database_error());
        match database {
            Some(database) => {
                text.push_str(&format!(": SQLSTATE {}", database.code().unwrap_or_default()));
                break;
            }
            None => text.push_str(&format!(": {cause}")),
        }
        source = cause.source();
    }
    text
}

fn retry_pause(context: &Context, failed_attempts: i32) -> Duration {
    let base = Duration::from_millis(u64::from(context.services.config.worker.retry_base_ms.get()));
    let doublings = u32::try_from(failed_attempts).unwrap_or(0).min(16);
    (base * 2_u32.pow(doublings)).min(MAX_RETRY_PAUSE)
}

/// Deletes what an attempt wrote and nobody will publish. A failure is logged: it must not change
/// the outcome, and the folder goes when the execution expires.
async fn drop_files(context: &Context, claimed: &Claimed, attempt: i32) {
    let folder = attempt_folder(claimed.created_at, claimed.id, attempt);
    if let Err(error) = context.services.store.remove_folder(&folder).await {
        tracing::warn!(%error, "cannot delete files that are not published");
    }
}

async fn record(
    connection: &mut PgConnection,
    claimed: &Claimed,
    action: &str,
    details: serde_json::Value,
) -> Result<(), sqlx::Error> {
    let event = audit::Event {
        action,
        entity_type: "report_executions",
        entity_id: Some(claimed.id),
        details,
    };
    audit::record(connection, &Actor::system(), event).await
}

fn lease_secs(context: &Context) -> i32 {
    i32::try_from(context.services.config.worker.lease_secs.get()).unwrap_or(i32::MAX)
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
