//! Who is measured, and how each is run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::data;
use crate::outcome::{Run, measure};
use crate::s3::Server;

/// The Python script, which needs psycopg and the library.
const PYTHON: &str = include_str!("peers.py");

/// One way of getting the query's rows into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// The process of ours that only connects.
    Idle,
    /// Ours, to a folder.
    Csv,
    /// Ours, to S3.
    CsvS3,
    /// Ours, to a folder, read over several connections.
    CsvSplit,
    /// Ours, to a folder.
    Xlsx,
    /// Ours, to S3.
    XlsxS3,
    /// Ours, to a folder.
    Parquet,
    /// Ours, to a folder.
    Ndjson,
    /// `psql \copy … csv` to a file.
    PsqlCopy,
    /// `COPY … TO '/dev/null'` by the server, text.
    ServerCopyText,
    /// The same, binary.
    ServerCopyBinary,
    /// rust_xlsxwriter, constant memory, as it comes.
    RustXlsxwriter,
    /// The same at the level that we compress at.
    RustXlsxwriterLevel3,
    /// Python's XlsxWriter, constant memory.
    PythonXlsxwriter,
    /// Python's openpyxl, write-only.
    PythonOpenpyxl,
}

impl Contender {
    /// All, in the order in which they are run.
    pub const ALL: [Self; 15] = [
        Self::Idle,
        Self::Csv,
        Self::PsqlCopy,
        Self::CsvS3,
        Self::CsvSplit,
        Self::Xlsx,
        Self::XlsxS3,
        Self::Parquet,
        Self::Ndjson,
        Self::ServerCopyText,
        Self::ServerCopyBinary,
        Self::RustXlsxwriter,
        Self::RustXlsxwriterLevel3,
        Self::PythonXlsxwriter,
        Self::PythonOpenpyxl,
    ];

    /// The name in the table and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Csv => "csv",
            Self::CsvS3 => "csv_s3",
            Self::CsvSplit => "csv_split",
            Self::Xlsx => "xlsx",
            Self::XlsxS3 => "xlsx_s3",
            Self::Parquet => "parquet",
            Self::Ndjson => "ndjson",
            Self::PsqlCopy => "psql_copy",
            Self::ServerCopyText => "server_copy_text",
            Self::ServerCopyBinary => "server_copy_binary",
            Self::RustXlsxwriter => "rust_xlsxwriter",
            Self::RustXlsxwriterLevel3 => "rust_xlsxwriter_level_3",
            Self::PythonXlsxwriter => "python_xlsxwriter",
            Self::PythonOpenpyxl => "python_openpyxl",
        }
    }

    /// Whether it takes minutes for a million rows, so that it is only measured with the few.
    pub const fn is_slow(self) -> bool {
        matches!(self, Self::PythonXlsxwriter | Self::PythonOpenpyxl)
    }

    /// Whether it needs a Python.
    pub const fn is_python(self) -> bool {
        self.is_slow()
    }
}

/// What all runs need.
pub struct Place {
    /// The database.
    pub database_url: String,
    /// A folder for files.
    pub folder: PathBuf,
    /// A Python with the peers, if there is one.
    pub python: Option<PathBuf>,
    /// The S3 server.
    pub s3: Server,
}

impl Place {
    /// Runs one export and measures it, with the size of its file.
    pub fn run(&self, contender: Contender, rows: u64) -> anyhow::Result<(Run, Option<u64>)> {
        let (command, file) = self.command(contender, rows)?;
        let run = measure(command).with_context(|| contender.name())?;
        let size = file.map(|file| std::fs::metadata(file).map(|file| file.len())).transpose()?;
        Ok((run, size))
    }

    /// Where a contender's file is.
    pub fn file(&self, contender: Contender) -> PathBuf {
        match contender {
            Contender::CsvS3 | Contender::XlsxS3 => self.s3.path_of(contender.name()),
            _ => self.folder.join(contender.name()),
        }
    }

    fn command(
        &self,
        contender: Contender,
        rows: u64,
    ) -> anyhow::Result<(Command, Option<PathBuf>)> {
        let file = self.file(contender);
        if file.exists() {
            std::fs::remove_file(&file)?;
        }
        let query = data::query(rows);
        let command = match contender {
            Contender::Idle => return Ok((self.ours(rows, contender, &[])?, None)),
            Contender::Csv => self.ours(rows, contender, &["--format", "csv"])?,
            Contender::Xlsx => self.ours(rows, contender, &["--format", "xlsx"])?,
            Contender::Parquet => self.ours(rows, contender, &["--format", "parquet"])?,
            Contender::Ndjson => self.ours(rows, contender, &["--format", "ndjson"])?,
            Contender::CsvSplit => {
                self.ours(rows, contender, &["--format", "csv", "--split-by", "id"])?
            }
            Contender::CsvS3 => {
                self.ours(rows, contender, &["--format", "csv", "--s3", &self.s3.endpoint])?
            }
            Contender::XlsxS3 => {
                self.ours(rows, contender, &["--format", "xlsx", "--s3", &self.s3.endpoint])?
            }
            Contender::PsqlCopy => {
                self.psql(&format!("\\copy ({query}) to '{}' csv header", file.display()))
            }
            Contender::ServerCopyText => {
                return Ok((self.psql(&format!("copy ({query}) to '/dev/null'")), None));
            }
            Contender::ServerCopyBinary => {
                let copy = format!("copy ({query}) to '/dev/null' (format binary)");
                return Ok((self.psql(&copy), None));
            }
            Contender::RustXlsxwriter => self.library(rows, &file, &[])?,
            Contender::RustXlsxwriterLevel3 => self.library(rows, &file, &["--level", "3"])?,
            Contender::PythonXlsxwriter => self.python("xlsxwriter", &file, &query)?,
            Contender::PythonOpenpyxl => self.python("openpyxl", &file, &query)?,
        };
        Ok((command, Some(file)))
    }

    fn this(&self, role: &str, rows: u64) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).args(["--rows", &rows.to_string()]);
        command.env("DATABASE_URL", &self.database_url);
        Ok(command)
    }

    fn ours(&self, rows: u64, contender: Contender, more: &[&str]) -> anyhow::Result<Command> {
        let mut command = self.this("ours", rows)?;
        command.arg("--folder").arg(&self.folder).args(["--name", contender.name()]).args(more);
        Ok(command)
    }

    fn library(&self, rows: u64, file: &Path, more: &[&str]) -> anyhow::Result<Command> {
        let mut command = self.this("rust-xlsxwriter", rows)?;
        command.arg("--out").arg(file).args(more);
        Ok(command)
    }

    /// psql without anybody's settings, in the time zone of our file.
    pub fn psql(&self, line: &str) -> Command {
        let mut command = Command::new("psql");
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.database_url]);
        command.args(["-c", line]).env("PGTZ", "UTC").env("PGDATESTYLE", "ISO");
        command
    }

    fn python(&self, library: &str, file: &Path, query: &str) -> anyhow::Result<Command> {
        let python = self.python.as_ref().context("a Python was given")?;
        let mut command = Command::new(python);
        command.args(["-c", PYTHON, library]).arg(file).arg(query);
        command.env("DATABASE_URL", &self.database_url);
        Ok(command)
    }
}
