//! `registrar demo`: the whole thing, from nothing to files, in one command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use secrecy::SecretString;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::postgres::BinariesArgs;
use super::serve::{self, Part};
use super::{Settings, note};
use crate::config::Config;
use crate::postgres::{ClusterOptions, DataDir, PrivateCluster};
use crate::schema;
use crate::service::Services;
use crate::service::tokens::TokenOrder;
use crate::telemetry;

mod client;
mod sample;

/// The account that the demo's token belongs to: it may run every report.
const ACCOUNT: &str = "admin";

/// Show it: private PostgreSQL, sample data, every report over HTTP, checked files
///
/// Makes a private PostgreSQL in a folder, or uses DATABASE_URL; brings the schema up; loads
/// sample data into an empty database; starts API, worker and scheduler; submits every report over
/// HTTP in CSV and XLSX, downloads the files and checks each against its manifest.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  registrar demo
  registrar demo --students 2000 --folder /tmp/demo
  registrar demo --keep-serving")]
pub struct DemoCommand {
    /// Students in the sample data; an existing database stays as it is
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=999_999))]
    students: u32,

    /// Folder for the cluster, the store and the files
    #[arg(long, value_name = "DIR", default_value = ".registrar")]
    folder: PathBuf,

    /// Serve until Ctrl-C instead of running the reports
    #[arg(long)]
    keep_serving: bool,

    #[command(flatten)]
    binaries: BinariesArgs,

    #[command(flatten)]
    settings: Settings,
}

/// Runs `registrar demo`.
///
/// # Errors
/// Any step fails, or a file is not what its manifest says.
pub async fn run(command: DemoCommand) -> anyhow::Result<ExitCode> {
    let mut config = command.settings.load()?;
    if !command.keep_serving {
        "warn".clone_into(&mut config.log.filter);
        // Any free port: a demo must not fail because something else listens.
        config.http.listen = ([127, 0, 0, 1], 0).into();
    }
    telemetry::init_logging(&config.log)?;
    let cluster = match config.database.url {
        Some(_) => None,
        None => Some(start_cluster(&command, &mut config).await?),
    };
    config.store.url = command.folder.join("store").to_string_lossy().into_owned();
    let outcome = Box::pin(demonstrate(&command, config)).await;
    if let Some(cluster) = cluster {
        cluster.stop().await.context("stop the private PostgreSQL")?;
    }
    outcome
}

async fn start_cluster(
    command: &DemoCommand,
    config: &mut Config,
) -> anyhow::Result<PrivateCluster> {
    note("Starting a private PostgreSQL …");
    let cluster = PrivateCluster::start(ClusterOptions {
        data: DataDir::Keep(command.folder.join("postgres")),
        binaries: command.binaries.find()?,
        settings: Vec::new(),
    })
    .await?;
    config.database.url = Some(SecretString::from(cluster.database_url()));
    Ok(cluster)
}

async fn demonstrate(command: &DemoCommand, mut config: Config) -> anyhow::Result<ExitCode> {
    if config.database.report_password.is_none() && config.database.report_url.is_none() {
        // Set on the role by every demo: nobody has to remember it.
        let password = uuid::Uuid::new_v4().simple().to_string();
        config.database.report_password = Some(SecretString::from(password));
    }
    if config.erasure.keys.is_empty() {
        let key = erasure_key(&command.folder.join("erasure.key")).await?;
        config.erasure.keys.insert(config.erasure.active_key.clone(), key);
    }
    let metrics = telemetry::init_metrics()?;
    crate::service::backlogs::describe_metrics();
    let services = super::services(config).await?;
    prepare(&services, command.students).await?;
    let order = TokenOrder {
        owner: Some(ACCOUNT.to_owned()),
        name: "demo".to_owned(),
        scopes: None,
        expires_after_days: Some(1),
    };
    let made = services.create_token(&super::operator(), order).await.context("make a token")?;
    let token = made.token;
    let listener = serve::bind(&services).await?;
    let base = format!("http://{}", listener.local_addr()?);
    let shutdown = CancellationToken::new();
    let serving =
        serve::run_parts(services.clone(), &Part::ALL, Some(listener), metrics, shutdown.clone());
    let using = async {
        let used = match command.keep_serving {
            true => keep_serving(&base, &token, &shutdown).await,
            false => client::run_reports(&base, &token, &command.folder.join("files")).await,
        };
        shutdown.cancel();
        used
    };
    let (served, used) = tokio::join!(Box::pin(serving), Box::pin(using));
    used?;
    served?;
    Ok(ExitCode::SUCCESS)
}

/// The key of the demo's ledger of erasures, the same in every demo of a folder: what one has
/// erased, the next must be able to read.
async fn erasure_key(path: &Path) -> anyhow::Result<SecretString> {
    if let Ok(kept) = tokio::fs::read_to_string(path).await {
        return Ok(SecretString::from(kept.trim().to_owned()));
    }
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let key = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let mut options = tokio::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).await?;
    file.write_all(key.as_bytes()).await?;
    file.flush().await?;
    Ok(SecretString::from(key))
}

async fn prepare(services: &Services, students: u32) -> anyhow::Result<()> {
    note("Bringing the schema up …");
    schema::up(&services.db, services.config.database.report_password.as_ref()).await?;
    if sample::is_loaded(&services.db).await? {
        note("The database has data already: using them.");
    } else {
        note(format!("Loading sample data of {students} students …"));
        sample::load(&services.db, students).await?;
    }
    let folder = &services.config.report.templates_dir;
    let synced = services.sync_templates(folder).await?;
    note(format!("{} report templates are in the database.", synced.len()));
    Ok(())
}

async fn keep_serving(base: &str, token: &str, shutdown: &CancellationToken) -> anyhow::Result<()> {
    note(format!(
        "\nListening on {base}   (documentation: {base}/docs)\nToken: {token}\n\nTry:\n  \
         curl -H 'Authorization: Bearer {token}' {base}/v1/reports\n\nCtrl-C ends it."
    ));
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}
