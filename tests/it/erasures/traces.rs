//! What is left when an erasure has ended: of the person nothing, of others everything.

use registrar::db::erasures::Status;
use registrar::retention::anonymize::Outcome;
use serde_json::json;

use super::{NAMES, PERSON, People};
use crate::support::app::submission;

#[tokio::test]
async fn a_search_over_database_archive_and_store_finds_nobody() {
    let people = People::new().await;
    people.app.define("everybody", "select id, username, email, phone_number from users").await;
    people.app.define("apart", "select name from roles").await;
    let executions = [
        people.app.run("everybody", json!({})).await.id,
        people.app.run("apart", json!({})).await.id,
    ];
    people
        .app
        .execute(
            "update report_executions
                set parameters = '{\"email\": \"zq@quill.example\", \"term\": \"2026\"}',
                    error_message = 'no such user: Zanele Quillfeather'",
        )
        .await;
    for name in NAMES {
        assert!(people.dump().contains(name) || name.contains("Close"), "{name} is there before");
    }
    let erasure = people.erase(PERSON).await;
    assert_eq!(erasure.status, Status::Completed);
    let dump = people.dump().to_lowercase();
    let objects = people.objects().await;
    for name in NAMES {
        let name = name.to_lowercase();
        let left: Vec<_> = dump.lines().filter(|line| line.contains(&name)).collect();
        // What others have too stays in the rows that are about them.
        let left: Vec<_> = left.into_iter().filter(|line| !line.contains("\t1008\t")).collect();
        assert!(left.is_empty(), "{name}: {left:#?}");
        for (path, text) in &objects {
            assert!(!text.to_lowercase().contains(&name), "{name} in {path}");
        }
    }
    let status = |id: i64| {
        let people = &people;
        async move { people.app.execution(id).await.status.to_string() }
    };
    assert_eq!(status(executions[0]).await, "expired", "its file names everybody");
    assert_eq!(status(executions[1]).await, "completed", "its file names nobody");
    let parameters = people.rows("select parameters from report_executions order by id").await;
    assert_eq!(parameters[0], r#"{"parameters": {"term": "2026", "email": null}}"#);
}

#[tokio::test]
async fn everything_that_is_not_the_persons_is_byte_for_byte_as_it_was() {
    let people = People::new().await;
    people
        .app
        .execute(
            "create table about_them as
             select id from audit_logs
              where user_id = 1007 or (entity_type in ('user', 'users') and entity_id = 1007)
                 or new_values::text ~* 'zanele.quillfeather'",
        )
        .await;
    let others = async || {
        let mut all = Vec::new();
        for query in [
            "select * from users where id <> 1007 order by id",
            "select * from audit_logs
              where id not in (select id from about_them) and action !~ '^(erasure|certificate)[.]'
              order by id",
            "select * from enrollments order by id",
            "select * from course_enrollments order by id",
            "select * from user_roles order by id",
            "select * from project_members order by id",
            "select * from innovation_projects order by id",
        ] {
            all.extend(people.rows(query).await);
        }
        all
    };
    let before = others().await;
    assert!(before.iter().any(|row| row.contains("17 Quillfeather Close")), "the neighbour's");
    people.erase(PERSON).await;
    let after = others().await;
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before, after);
    }
}

#[tokio::test]
async fn the_person_keeps_a_row_that_names_nobody() {
    let people = People::new().await;
    people.erase(PERSON).await;
    let row = &people.rows("select * from users where id = 1007").await[0];
    let row: serde_json::Value = serde_json::from_str(row).unwrap();
    assert!(row["email"].as_str().unwrap().ends_with("@erased.invalid"), "{row}");
    assert_eq!(row["username"].as_str().unwrap().len(), 24, "{row}");
    assert!(row["password"].as_str().unwrap().starts_with('!'), "{row}");
    assert_eq!(row["date_of_birth"], "2001-01-01", "{row}");
    assert_eq!(row["is_active"], false, "{row}");
    for column in ["first_name", "last_name", "phone_number", "address"] {
        assert!(row[column].is_null(), "{column}: {row}");
    }
    let audit = people
        .rows(
            "select ip_address, user_agent, old_values, new_values
               from audit_logs
              where user_id = 1007 and action in ('login', 'update') and id > 1000
              order by id desc limit 2",
        )
        .await
        .join("\n");
    for kept in
        ["198.51.100.0/24", "2001:db8:77::/48", "Firefox", "curl", "password", "\"note\": 7"]
    {
        assert!(audit.contains(kept), "{kept} in {audit}");
    }
    // An administrator's own address in a row about the person is the administrator's.
    let admins = "select count(*) from audit_logs where ip_address = '203.0.113.1'";
    assert_eq!(people.app.number(admins).await, 2);
}

#[tokio::test]
async fn a_second_go_changes_nothing() {
    let people = People::new().await;
    let erasure = people.erase(PERSON).await;
    let data = async || {
        let mut all = people.rows("select * from users order by id").await;
        all.extend(people.rows("select ctid, * from audit_logs order by id").await);
        all.extend(people.rows("select ctid, * from archive.audit_logs order by id").await);
        all.extend(people.rows("select ctid, * from report_executions order by id").await);
        all
    };
    let (before, stored) = (data().await, people.app.stored().await);
    assert_eq!(people.carry_out().await, Outcome::default());
    assert_eq!(data().await, before);
    // Even where the marker was lost.
    people
        .app
        .execute(
            "update erasures set status = 'waiting', completed_at = null, verified_at = null,
                                 run_at = now()",
        )
        .await;
    assert_eq!(people.carry_out().await.completed, 1);
    let mut after = data().await;
    after.retain(|row| !row.contains("erasure.completed") && !row.contains("certificate.sealed"));
    let mut before = before;
    before.retain(|row| !row.contains("erasure.completed") && !row.contains("certificate.sealed"));
    assert_eq!(after, before, "no row was written again");
    assert_eq!(people.status(erasure.id).await, Status::Completed);
    let more: Vec<_> = people.app.stored().await;
    assert!(stored.iter().all(|path| more.contains(path)));
}

#[tokio::test]
async fn an_erasure_waits_for_a_report_that_read_before_it() {
    let mut people = People::new().await;
    people.app.leave_unfinished();
    people
        .app
        .define("slow", "select u.username from users u, pg_sleep(3600) where u.id = 1007")
        .await;
    let submitted = submission(json!({}), registrar::writer::Format::Csv);
    let operator = people.app.operator();
    let id = people.app.submit_as(&operator, "slow", &submitted).await.unwrap().execution.id;
    let worker = people.app.start_worker().await;
    people.app.wait_until_querying(id).await;
    let erasure = people.request(PERSON).await;
    people.end_grace().await;
    assert_eq!(people.carry_out().await, Outcome { postponed: 1, ..Outcome::default() });
    let waits = people.erasure(erasure.id).await;
    assert_eq!(waits.waits_because.as_deref(), Some("report_running"));
    people.app.services.cancel(&operator, id).await.unwrap();
    people.app.wait_until_ended(id).await;
    worker.stop().await;
    people.end_grace().await;
    assert_eq!(people.carry_out().await.completed, 1);
}

#[tokio::test]
async fn a_run_killed_again_and_again_ends_like_an_undisturbed_one() {
    let ends = async |kills: u64| {
        let people = People::with(
            crate::support::TestApp::new().with(|config| {
                config.erasure.chunk_rows = std::num::NonZeroU32::new(2).unwrap();
                config.erasure.lease_secs = std::num::NonZeroU32::new(1).unwrap();
            }),
            true,
        )
        .await;
        for subject in 1007..1015 {
            people.request(&subject.to_string()).await;
        }
        people.end_grace().await;
        for kill in 0..kills {
            let mut process =
                crate::support::process::Process::start(&people.app.config, &["erasure", "run"]);
            // Where it is killed differs: that is the point. The end is waited for, and is a state.
            let pause = std::time::Duration::from_millis(40 + 35 * kill);
            tokio::time::sleep(pause).await;
            process.kill().await;
            people.app.execute("update erasures set run_at = now() where run_at > now()").await;
        }
        people
            .app
            .wait_for("every erasure to end", async || {
                people
                    .app
                    .execute(
                        "update erasures set run_at = now(),
                                lease_until = case when status = 'processing'
                                                   then now() - interval '1 second' end
                          where status in ('waiting', 'processing')",
                    )
                    .await;
                people.carry_out().await;
                let open = "select count(*) from erasures where status <> 'completed'";
                people.app.number(open).await == 0
            })
            .await;
        let verified = people.app.services.verify_certificates(&people.app.operator(), None).await;
        assert_eq!(verified.unwrap().findings, []);
        let mut rows = people
            .rows("select to_jsonb(u) - 'deleted_at' as person from users u order by id")
            .await;
        rows.extend(
            people
                .rows(
                    "select to_jsonb(a) - 'created_at' as row from audit_logs a
                      where action !~ '^(erasure|certificate)[.]' order by id",
                )
                .await,
        );
        rows.extend(people.rows("select * from archive.audit_logs order by id").await);
        rows.extend(
            people
                .rows(
                    "select subject_id, table_name, rows_changed
                       from erasure_tables join erasures on id = erasure_id
                      order by 1, 2",
                )
                .await,
        );
        rows
    };
    let (undisturbed, disturbed) = (ends(0).await, ends(12).await);
    assert_eq!(undisturbed.len(), disturbed.len());
    for (expected, is) in undisturbed.iter().zip(&disturbed) {
        assert_eq!(expected, is);
    }
}
