//! Erasures: nobody is left who should be gone, nobody else is touched, and there is proof.

mod front;
mod keys;
mod policies;
mod proof;
mod properties;
mod purges;
mod request;
mod traces;

use std::fs;
use std::process::Command;

use registrar::db::erasures::{Erasure, Status};
use registrar::postgres::Binaries;
use registrar::retention::anonymize::Outcome;
use tempfile::TempDir;

use crate::support::TestApp;
use crate::support::app::Builder;
use crate::support::database::sql;

/// What the shipped classification says of the tables of these tests.
const CLASSIFICATION: &str = include_str!("../../../jobs/classification.toml");

/// A student whose every name is like no other's, with traces in every place.
const PERSON: &str = "1007";
/// A neighbour whom nothing may touch.
const NEIGHBOUR: &str = "1008";

/// What a search for the person must not find anywhere. The two addresses at the end are those of
/// the connections of their audit rows.
const NAMES: [&str; 8] = [
    "zanele.quillfeather",
    "zq@quill.example",
    "Zanele Quillfeather",
    "+263 77 555 0199",
    "17 Quillfeather Close",
    "198.51.100.77",
    "2001:db8:77:1::77",
    "old.quill@elsewhere.example",
];

/// An app with a jobs folder of its own, and the person in it.
struct People {
    app: TestApp,
    _jobs: TempDir,
}

impl People {
    async fn new() -> Self {
        Self::with(TestApp::new(), true).await
    }

    async fn with(builder: Builder, with_person: bool) -> Self {
        let jobs = TempDir::new().unwrap();
        fs::write(jobs.path().join("classification.toml"), CLASSIFICATION).unwrap();
        let folder = jobs.path().to_owned();
        let app = builder.with(|config| config.lifecycle.jobs_dir = folder).await;
        let people = Self { app, _jobs: jobs };
        if with_person {
            people.write_person().await;
        }
        people
    }

    /// Gives the person their names, and leaves traces of them where applications leave them.
    async fn write_person(&self) {
        for statement in [
            "update users
                set username = 'zanele.quillfeather', email = 'zq@quill.example',
                    first_name = 'Zanele', last_name = 'Quillfeather',
                    phone_number = '+263 77 555 0199', address = E'17 Quillfeather Close\nHarare',
                    date_of_birth = '2001-05-17', password = 'pbkdf2$quill'
              where id = 1007",
            "insert into audit_logs (user_id, action, entity_type, entity_id, old_values,
                                     new_values, ip_address, user_agent)
             values (1007, 'login', 'user', 1007, null, '{\"method\": \"password\"}',
                     '198.51.100.77', 'Mozilla/5.0 (X11) Firefox/126 zanele.quillfeather'),
                    (1007, 'update', 'user', 1007,
                     '{\"email\": \"old.quill@elsewhere.example\", \"note\": 7}',
                     '{\"email\": \"zq@quill.example\", \"deep\": [{\"phoneNumber\": 1}]}',
                     '2001:db8:77:1::77', 'curl/8.5.0'),
                    (1, 'update', 'users', 1007, '{\"address\": \"17 Quillfeather Close\"}', null,
                     '203.0.113.1', 'Mozilla/5.0 Chrome/126'),
                    (1, 'create', 'enrollment', 3, null,
                     '{\"student\": {\"name\": \"Zanele Quillfeather\"}, \"status\": \"active\"}',
                     '203.0.113.1', 'Mozilla/5.0 Chrome/126'),
                    (1008, 'update', 'user', 1008, null,
                     '{\"address\": \"17 Quillfeather Close\", \"kin\": \"a friend\"}',
                     '198.51.100.77', 'curl/8.5.0'),
                    (null, 'login.failed', 'user', null, null,
                     '{\"username\": \"Zanele.Quillfeather\", \"attempts\": 2}', null, null)",
            "create schema if not exists archive",
            "create table if not exists archive.audit_logs
                    (like audit_logs, archived_at timestamptz, primary key (id))",
            "insert into archive.audit_logs (id, user_id, action, entity_type, entity_id,
                                             old_values, ip_address, user_agent)
             values (900001, 1007, 'login', 'user', 1007, '{\"email\": \"zq@quill.example\"}',
                     '198.51.100.77', 'curl/8.5.0 zq@quill.example')",
        ] {
            self.app.execute(statement).await;
        }
    }

    async fn request(&self, subject: &str) -> Erasure {
        let operator = self.app.operator();
        self.app.services.request_erasure(&operator, None, subject).await.expect("a request")
    }

    /// Ends the grace of every open erasure.
    async fn end_grace(&self) {
        self.app
            .execute(
                "update erasures set due_at = now(), run_at = now()
                  where status in ('waiting', 'held')",
            )
            .await;
    }

    async fn carry_out(&self) -> Outcome {
        self.app.services.carry_out_erasures().await.expect("erasures are carried out")
    }

    /// Requests an erasure and carries it out.
    async fn erase(&self, subject: &str) -> Erasure {
        let erasure = self.request(subject).await;
        self.end_grace().await;
        let outcome = self.carry_out().await;
        assert_eq!(outcome, Outcome { completed: 1, ..Outcome::default() });
        self.erasure(erasure.id).await
    }

    async fn erasure(&self, id: i64) -> Erasure {
        self.app.services.erasure(&self.app.operator(), id).await.expect("the erasure")
    }

    async fn status(&self, id: i64) -> Status {
        self.erasure(id).await.status
    }

    /// The rows of a query as JSON, one a line.
    async fn rows(&self, query: &str) -> Vec<String> {
        let query = format!("select to_jsonb(q)::text from ({query}) q");
        sqlx::query_scalar(sql(query)).fetch_all(&self.app.services.db).await.unwrap()
    }

    /// The whole database as text.
    fn dump(&self) -> String {
        let server = Binaries::find(None).unwrap().program("postgres").canonicalize().unwrap();
        let mut command = Command::new(server.with_file_name("pg_dump"));
        let output = command.args(["--dbname", self.app.database_url()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Every object of the store as text, path first.
    async fn objects(&self) -> Vec<(String, String)> {
        let mut objects = Vec::new();
        for path in self.app.stored().await {
            let bytes = self.app.services.store.get(&path.as_str().into()).await.unwrap();
            objects.push((path, String::from_utf8_lossy(&bytes).into_owned()));
        }
        objects
    }
}
