//! `registrar report`: the catalogue, and running a report without the queue.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::{Settings, command_services, note, operator, say, say_json, table};
use crate::report::definition::Definition;
use crate::report::error::ReportError;
use crate::report::parameters::{Parameter, ParameterType};
use crate::report::pipeline::{Destination, Watch};
use crate::report::{self, Limits, Order, Presentation};
use crate::service::reports::CatalogueEntry;
use crate::service::{ServiceError, Services};
use crate::writer::{Compression, FileType, Format, Reader, WriteError};

/// List, check, sync and run reports
#[derive(Debug, Args)]
pub struct ReportCommand {
    #[command(subcommand)]
    verb: ReportVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum ReportVerb {
    /// List the reports of the database
    #[command(after_help = "Example:\n  registrar report list")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a report with its parameters as JSON Schema
    #[command(after_help = "Example:\n  registrar report show gpa-ranking")]
    Show {
        /// The report's slug
        slug: String,
    },
    /// Run a report with the worker's engine, into a file or to standard output
    #[command(after_help = "\
Examples:
  registrar report run gpa-ranking --output ranking.xlsx
  registrar report run gpa-ranking --format ndjson --compression zstd > ranking.ndjson.zst
  registrar report run audit-log-extract -p from_date=2026-01-01 | head")]
    Run(RunArgs),
    /// Check every template with the server, as the report role
    #[command(after_help = "Example:\n  registrar report validate --templates report-templates")]
    Validate {
        /// Folder of templates [default: report.templates_dir]
        #[arg(long, value_name = "DIR")]
        templates: Option<PathBuf>,
    },
    /// Bring the templates into the database
    #[command(after_help = "Example:\n  registrar report sync")]
    Sync {
        /// Folder of templates [default: report.templates_dir]
        #[arg(long, value_name = "DIR")]
        templates: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `registrar report run`.
#[derive(Debug, Args)]
struct RunArgs {
    /// The report's slug
    slug: String,
    /// A parameter; lists are separated by commas
    #[arg(short, long = "parameter", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// csv, xlsx, parquet or ndjson [default: from the name of --output, otherwise csv]
    #[arg(long)]
    format: Option<Format>,
    /// gzip or zstd, for csv and ndjson [default: from the name of --output, otherwise none]
    #[arg(long)]
    compression: Option<Compression>,
    /// Who reads the file
    #[arg(long, value_enum, default_value_t = ReaderArg::Machine)]
    reader: ReaderArg,
    /// The file; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReaderArg {
    Machine,
    Spreadsheet,
}

/// Runs `registrar report`.
///
/// # Errors
/// Settings, database or files cannot be used, or the report fails.
pub async fn run(command: ReportCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    match command.verb {
        ReportVerb::List { json } => list(&services, json).await?,
        ReportVerb::Show { slug } => {
            let entry = services.show_report(&operator(), &slug).await?;
            say_json(&shown(&entry))?;
        }
        ReportVerb::Run(arguments) => run_report(&services, &arguments).await?,
        ReportVerb::Validate { templates } => return validate(&services, templates).await,
        ReportVerb::Sync { templates, json } => {
            let folder = templates.unwrap_or_else(|| services.config.report.templates_dir.clone());
            let synced = services.sync_templates(&folder).await?;
            if json {
                say_json(&synced)?;
            } else {
                for template in synced {
                    let outcome = format!("{:?}", template.outcome).to_lowercase();
                    say(format!("{outcome:9}  {} (version {})", template.slug, template.version))?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(services: &Services, as_json: bool) -> anyhow::Result<()> {
    let entries = services.list_reports(&operator()).await?;
    if as_json {
        return say_json(&entries.iter().map(shown).collect::<Vec<_>>());
    }
    let rows: Vec<_> = entries
        .iter()
        .map(|entry| {
            vec![
                entry.definition.slug().to_string(),
                entry.version.to_string(),
                entry.definition.title().to_owned(),
            ]
        })
        .collect();
    table(&["SLUG", "VERSION", "TITLE"], &rows)
}

fn shown(entry: &CatalogueEntry) -> Value {
    let definition = &entry.definition;
    json!({
        "slug": definition.slug(),
        "version": entry.version,
        "title": definition.title(),
        "description": definition.description(),
        "permission": definition.permission(),
        "time_zone": definition.time_zone().name(),
        "parameters": definition.json_schema(),
    })
}

async fn validate(services: &Services, templates: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let folder = templates.unwrap_or_else(|| services.config.report.templates_dir.clone());
    let mut good = true;
    for template in services.validate_templates(&folder).await? {
        if template.problems.is_empty() {
            say(format!("ok   {}", template.slug))?;
        }
        for problem in template.problems {
            good = false;
            say(format!("bad  {}: {problem}", template.slug))?;
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_report(services: &Services, arguments: &RunArgs) -> anyhow::Result<()> {
    let entry = services.show_report(&operator(), &arguments.slug).await?;
    let definition = &entry.definition;
    let given = parse_parameters(definition, &arguments.parameters)?;
    let parameters = match services.bind(definition, &given).await {
        Ok(parameters) => parameters,
        Err(ServiceError::BadParameters(errors)) => {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            bail!("parameters:\n  {}", lines.join("\n  "));
        }
        Err(error) => return Err(error.into()),
    };
    let file_type = file_type_of(arguments)?;
    let reader = match arguments.reader {
        ReaderArg::Machine => Reader::Machine,
        ReaderArg::Spreadsheet => Reader::Spreadsheet,
    };
    let order = Order {
        definition,
        parameters: &parameters,
        format: file_type.format(),
        presentation: Presentation {
            reader,
            compression: file_type.compression(),
            ..Presentation::default()
        },
        limits: Limits::of(definition, &services.config.report),
        name: format!("registrar report run {}", arguments.slug),
    };
    let to_stdout = arguments.output.as_os_str() == "-";
    // Beside the target, and renamed when whole: a file of that name is never a part of one.
    let mut part = arguments.output.clone().into_os_string();
    part.push(".part");
    let mut destination = Destination::Stream(match to_stdout {
        true => Box::new(tokio::io::stdout()),
        false => Box::new(
            tokio::fs::File::create(&part)
                .await
                .with_context(|| format!("create {}", part.display()))?,
        ),
    });
    let exported = export(services, &order, &mut destination).await;
    if !to_stdout {
        match &exported {
            Ok(_) => tokio::fs::rename(&part, &arguments.output).await?,
            Err(_) => tokio::fs::remove_file(&part).await?,
        }
    }
    let written = exported?.written;
    note(format!(
        "{} rows, {} bytes, SHA-256 {}",
        written.summary.rows, written.size_bytes, written.sha256
    ));
    if let Some(sentence) = written.truncated {
        note(sentence);
    }
    Ok(())
}

async fn export(
    services: &Services,
    order: &Order<'_>,
    destination: &mut Destination,
) -> anyhow::Result<report::Exported> {
    let watch = Arc::new(Watch::default());
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}")?);
    let showing = async {
        loop {
            let rows = watch.rows.load(Ordering::Relaxed);
            let bytes = watch.bytes.load(Ordering::Relaxed);
            bar.set_message(format!("{rows} rows, {bytes} bytes"));
            bar.tick();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let stopping = async {
        let _ = tokio::signal::ctrl_c().await;
        watch.stop.cancel();
        std::future::pending::<()>().await;
    };
    let running = async {
        let opened = report::open(&services.reports, order).await?;
        opened.export(order, services.store.part_bytes(), destination, &watch).await
    };
    let exported = tokio::select! {
        exported = running => exported,
        () = showing => unreachable!("it shows for ever"),
        () = stopping => unreachable!("it waits for ever"),
    };
    bar.finish_and_clear();
    exported.map_err(|error| match error {
        // Whoever read standard output has seen enough.
        ReportError::Write(WriteError::Io(error)) => error.into(),
        error => anyhow::anyhow!("{}", error.public_message()),
    })
}

/// What was asked for, otherwise what the name of the file says.
fn file_type_of(arguments: &RunArgs) -> anyhow::Result<FileType> {
    let named = arguments.output.to_str().and_then(FileType::of_name);
    let format = arguments.format.or(named.map(FileType::format)).unwrap_or(Format::Csv);
    let of_name = named.filter(|named| named.format() == format);
    let compression = arguments.compression.or(of_name.and_then(FileType::compression));
    Ok(FileType::new(format, compression)?)
}

/// `name=value` as JSON of the parameter's type. What cannot be read goes through as text, so that
/// one place says what was expected.
fn parse_parameters(
    definition: &Definition,
    given: &[String],
) -> anyhow::Result<Map<String, Value>> {
    let mut parameters = Map::new();
    for pair in given {
        let (name, value) =
            pair.split_once('=').with_context(|| format!("`{pair}` must be NAME=VALUE"))?;
        let declared = definition.parameters().iter().find(|p| p.name() == name);
        parameters.insert(name.to_owned(), parse_value(declared, value));
    }
    Ok(parameters)
}

fn parse_value(declared: Option<&Parameter>, text: &str) -> Value {
    let Some(parameter) = declared else { return text.into() };
    let one = |text: &str| match parameter.parameter_type() {
        ParameterType::Integer => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
        ParameterType::Boolean => text.parse::<bool>().map_or_else(|_| text.into(), Value::from),
        ParameterType::Text
        | ParameterType::Bigint
        | ParameterType::Numeric
        | ParameterType::Date
        | ParameterType::Timestamptz
        | ParameterType::Uuid
        | ParameterType::Enum => text.into(),
    };
    match parameter.is_list() {
        true => text.split(',').map(|item| one(item.trim())).collect(),
        false => one(text),
    }
}
