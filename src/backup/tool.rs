//! `pg_dump` and `pg_restore` as children: their end is certain, and what they say is bounded and
//! without rows.

use std::io::Read;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use super::error::BackupError;

/// What is kept of a program's messages.
const MAX_MESSAGES_BYTES: u64 = 64 * 1024;

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Tool {
    name: &'static str,
    child: Child,
    messages: Option<JoinHandle<Vec<u8>>>,
}

impl Tool {
    /// Starts `command` with both pipes.
    pub(super) fn start(
        name: &'static str,
        command: &mut Command,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<Self, BackupError> {
        let mut child = command
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(BackupError::io("start a program of PostgreSQL"))?;
        let mut stderr = child.stderr.take().expect("it was asked for");
        let messages = std::thread::spawn(move || {
            let mut kept = Vec::new();
            // A pipe that breaks says no more.
            let _read = stderr.by_ref().take(MAX_MESSAGES_BYTES).read_to_end(&mut kept);
            let _rest = std::io::copy(&mut stderr, &mut std::io::sink());
            kept
        });
        Ok(Self { name, child, messages: Some(messages) })
    }

    pub(super) fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("it was asked for, once")
    }

    pub(super) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("it was asked for, once")
    }

    /// Waits for its end. Blocks.
    ///
    /// # Errors
    /// [`BackupError::Program`] with its first error.
    pub(super) fn finish(mut self) -> Result<(), BackupError> {
        let status = self.child.wait().map_err(BackupError::io("wait for a program"))?;
        let messages = self.messages.take().and_then(|thread| thread.join().ok());
        if status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&messages.unwrap_or_default()).into_owned();
        let message = first_error(&text).unwrap_or_else(|| status.to_string());
        Err(BackupError::Program { program: self.name, message })
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It may end this very moment.
            let _killed = self.child.kill();
            let _ended = self.child.wait();
        }
    }
}

/// The first line that says "error". The lines after it (DETAIL, CONTEXT, the statement) can hold
/// rows, and so can what stands in quotes after a server's ERROR about a value.
fn first_error(messages: &str) -> Option<String> {
    let line = messages
        .lines()
        .find(|line| ["error:", "FATAL:", "ERROR:"].iter().any(|mark| line.contains(mark)))?;
    let line = line.split_once("error: ").map_or(line, |(_, rest)| rest);
    let hides_value = ["invalid input", "invalid byte", "out of range", "too long"];
    if hides_value.iter().any(|phrase| line.contains(phrase)) {
        return Some(line.split('"').next().unwrap_or_default().trim().to_owned());
    }
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_without_rows() {
        let text = "pg_restore: while PROCESSING TOC:\n\
                    pg_restore: error: could not execute query: ERROR:  duplicate key value violates \
                    unique constraint \"users_email_key\"\n\
                    DETAIL:  Key (email)=(ann@example.org) already exists.\n";
        let told = first_error(text).unwrap();
        assert!(
            told.starts_with("could not execute query") && told.ends_with("\"users_email_key\"")
        );
        let text = "pg_restore: error: COPY failed: ERROR:  invalid input syntax: \"Ann\"";
        assert_eq!(first_error(text).unwrap(), "COPY failed: ERROR:  invalid input syntax:");
        assert_eq!(first_error("all is well"), None);
    }
}
