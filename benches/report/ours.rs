//! One export through the engine and the store, in a process of its own.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use object_store::path::Path;
use registrar::config::{Config, Overrides};
use registrar::report::definition::Definition;
use registrar::report::parameters::BoundParameters;
use registrar::report::pipeline::{Destination, Watch};
use registrar::report::source::ReportDatabase;
use registrar::report::{self, Limits, Order, Presentation};
use registrar::store::Store;
use registrar::writer::Format;

use crate::data;
use crate::outcome::tell_usage;
use crate::s3::Access;

/// What to export, and where to.
#[derive(Debug, Args)]
pub struct OursArgs {
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Left out: connect and open the store, and do nothing more.
    #[arg(long)]
    format: Option<Format>,
    #[arg(long)]
    rows: u64,
    /// The column to split by.
    #[arg(long)]
    split_by: Option<String>,
    /// Address of an S3 server; without it the store is the folder.
    #[arg(long)]
    s3: Option<String>,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    name: String,
}

/// Runs one export and tells on standard output what it took.
pub async fn run(arguments: OursArgs) -> anyhow::Result<()> {
    let overrides = Overrides { file: None, database_url: Some(arguments.database_url.clone()) };
    let mut config = Config::load(&overrides)?;
    match &arguments.s3 {
        Some(endpoint) => Access::to(endpoint).apply(&mut config.store),
        None => config.store.url = arguments.folder.to_string_lossy().into_owned(),
    }
    // As the command line does; `Err` only says that it is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = Store::open(&config.store)?;
    let database = ReportDatabase::new(arguments.database_url.parse()?);
    let definition = definition(&arguments)?;
    let parameters = BoundParameters::from_canonical(&definition, &serde_json::json!({}))
        .map_err(|_| anyhow::anyhow!("the query has no parameters"))?;
    let order = Order {
        definition: &definition,
        parameters: &parameters,
        format: arguments.format.unwrap_or(Format::Csv),
        presentation: Presentation::default(),
        limits: Limits::of(&definition, &config.report),
        name: "registrar bench".to_owned(),
    };
    let opened = report::open(&database, &order).await?;
    if arguments.format.is_none() {
        opened.close().await;
        return tell_usage();
    }
    let mut destination = Destination::Store(store.upload(Path::from(arguments.name.as_str())));
    let watch = Arc::new(Watch::default());
    let exported = opened.export(&order, store.part_bytes(), &mut destination, &watch).await?;
    anyhow::ensure!(exported.written.summary.rows == arguments.rows, "rows are missing");
    tell_usage()
}

fn definition(arguments: &OursArgs) -> anyhow::Result<Definition> {
    let mut toml = "title = \"Bench\"\n".to_owned();
    if let Some(column) = &arguments.split_by {
        toml.push_str(&format!("split_by = \"{column}\"\n"));
    }
    let slug = "bench".parse().context("a slug")?;
    Ok(Definition::from_template(slug, &toml, &data::query(arguments.rows))?)
}
