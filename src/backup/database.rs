//! A database as the engine reaches it: over sqlx, and as what `pg_dump` and `pg_restore` are told.

use std::process::Command;
use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use url::Url;

use super::error::BackupError;

/// What libpq and sqlx both understand in a URL. The rest is for sqlx alone, and libpq refuses it.
const LIBPQ_PARAMETERS: [&str; 9] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port", "user", "dbname", "options"];

/// A database by its URL.
#[derive(Debug, Clone)]
pub struct Database {
    options: PgConnectOptions,
    /// Without password: arguments of a process can be seen by everybody on the machine.
    url: String,
    password: Option<SecretString>,
}

impl Database {
    /// Reads a URL. `key` names it in the error.
    ///
    /// # Errors
    /// [`BackupError::BadUrl`]
    pub fn new(key: &'static str, url: &SecretString) -> Result<Self, BackupError> {
        let bad = || BackupError::BadUrl(key);
        let options = PgConnectOptions::from_str(url.expose_secret()).map_err(|_| bad())?;
        let options = options.application_name("registrar backup").disable_statement_logging();
        let mut url = Url::parse(url.expose_secret()).map_err(|_| bad())?;
        let mut password = url.password().map(decoded).transpose().map_err(|()| bad())?;
        let known: Vec<(String, String)> = url
            .query_pairs()
            .map(|(name, value)| {
                (
                    if name == "ssl-mode" { "sslmode".into() } else { name.into_owned() },
                    value.into(),
                )
            })
            .collect();
        if let Some((_, value)) = known.iter().find(|(name, _)| name == "password") {
            password = Some(value.clone());
        }
        url.set_query(None);
        for (name, value) in &known {
            if LIBPQ_PARAMETERS.contains(&name.as_str()) {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        // Only a URL that cannot have a password refuses.
        let _none = url.set_password(None);
        Ok(Self { options, url: url.into(), password: password.map(SecretString::from) })
    }

    /// The same server, another database.
    ///
    /// # Errors
    /// [`BackupError::BadUrl`]
    pub fn with_name(&self, name: &str) -> Result<Self, BackupError> {
        let mut url = Url::parse(&self.url).map_err(|_| BackupError::BadUrl("the server"))?;
        url.set_path(name);
        Ok(Self { options: self.options.clone().database(name), url: url.into(), ..self.clone() })
    }

    /// The same role and database on a server of this machine that is reached by a socket.
    pub(super) fn at_socket(&self, folder: &std::path::Path, port: u16) -> Self {
        let options = self.options.clone().socket(folder).port(port);
        Self { options, ..self.clone() }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// [`BackupError::Database`]
    pub async fn connect(&self) -> Result<PgConnection, BackupError> {
        PgConnection::connect_with(&self.options)
            .await
            .map_err(BackupError::database("connect to the database"))
    }

    /// Tells a program of PostgreSQL which database is meant.
    pub(super) fn name_to(&self, command: &mut Command) {
        command.arg("--dbname").arg(&self.url).arg("--no-password");
        // Messages in one known language; what else libpq would take from here, the URL decides.
        command.env("LC_MESSAGES", "C").env_remove("PGOPTIONS").env_remove("PGSERVICE");
        if let Some(password) = &self.password {
            command.env("PGPASSWORD", password.expose_secret());
        }
    }
}

fn decoded(text: &str) -> Result<String, ()> {
    // A query string of one value is the decoder that the crate has.
    let encoded = text.replace('+', "%2B");
    let pair = format!("p={encoded}");
    url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into()).ok_or(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(url: &str) -> Database {
        Database::new("database.url", &SecretString::from(url)).unwrap()
    }

    #[test]
    fn programs_see_the_password_only_in_their_environment() {
        let database = database(
            "postgres://ana:p%40ss+1@db.example:5433/app?ssl-mode=require&statement-cache-capacity=5",
        );
        let mut command = Command::new("pg_dump");
        database.name_to(&mut command);
        let arguments: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(arguments[1], "postgres://ana@db.example:5433/app?sslmode=require");
        let password = command.get_envs().find(|(name, _)| *name == "PGPASSWORD").unwrap().1;
        assert_eq!(password.unwrap(), "p@ss+1");
    }

    #[test]
    fn another_database_of_the_server_keeps_the_rest() {
        let other = database("postgres://ana:x@db.example/app").with_name("scratch").unwrap();
        assert_eq!(other.url, "postgres://ana@db.example/scratch");
        assert_eq!(other.options.get_database(), Some("scratch"));
    }
}
