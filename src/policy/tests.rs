use std::path::Path;

use proptest::prelude::*;

use super::*;

const ARCHIVE: &str = r#"
kind        = "archive"
description = "Old rows move."
owner       = "records-office"

[schedule]
cron      = "30 2 * * SUN"
timezone  = "Africa/Harare"
window    = "24h"

[limits]
max_rows     = 5_000_000
max_share    = 0.20
chunk_target = "150ms"
pause_when   = { replica_lag = "5s", oldest_transaction = "10m", load_per_core = 2 }

[approval]
required_for = "manual"
by           = "retention.approve"

[[table]]
name  = "visits"
age   = "terms.end_date"
after = "5 years"
where = "visits.state <> 'open' and (visits.note is null or length(visits.note) > 3)"
when_null = "indeterminate"

[[table]]
name  = "logs"
age   = "created_at"
after = "5 years"
export = { format = "parquet", verify = true, keep = "7 years" }
"#;

fn parse(text: &str) -> Result<Policy, String> {
    let name = "some-policy".parse().unwrap();
    Policy::from_toml(name, text).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    parse(text).expect_err(text)
}

fn policy_of(kind: &str) -> String {
    format!("description = \"x\"\nowner = \"y\"\n{kind}\n")
}

#[test]
fn an_archive_policy_is_read_whole() {
    let policy = parse(ARCHIVE).unwrap();
    assert!(policy.enabled);
    assert_eq!(policy.time_zone.name(), "Africa/Harare");
    assert_eq!(policy.limits.max_rows, Some(5_000_000));
    assert_eq!(policy.limits.pause_when.load_per_core, Some(2.0));
    assert_eq!(policy.approval.required_for, ApprovalRule::Manual);
    let Kind::Archive(Archive { tables }) = &policy.kind else { panic!("not an archive") };
    assert_eq!(tables[0].age.to_string(), "terms.end_date");
    assert_eq!(tables[0].after.to_string(), "5 years");
    assert!(!tables[0].keep_children);
    assert_eq!(
        tables[1].export,
        Some(Export { format: ExportFormat::Parquet, verify: true, keep: "7 years".parse().ok() })
    );
}

#[test]
fn every_kind_is_read() {
    let keep = "[keep]\ndaily = 14\nweekly = 8\nmonthly = 24\nyearly = 7";
    let kinds = [
        ("kind = \"anonymize\"\nsubject = \"people\"\nwhen = \"erasures.due\"\norder = \"satellites-first\"\n\
          k_anonymity = { quasi = [\"city\", \"born\"], k = 5, on_fail = \"report\" }".to_owned(), "anonymize"),
        ("kind = \"purge\"\n[[table]]\nname = \"people\"\nage = \"deleted_at\"\nafter = \"30 days\"\n\
          if_referenced = \"anonymize\"".to_owned(), "purge"),
        ("kind = \"purge\"\n[[table]]\nname = \"archive.logs\"\nage = \"created_at\"\nafter = \"7 years\"\n\
          if_referenced = \"cascade\"\ncascade = [\"archive.lines\"]".to_owned(), "purge"),
        ("kind = \"expire-results\"".to_owned(), "expire-results"),
        (format!("kind = \"backup\"\nengine = \"pg_dump\"\nencrypt_to = [\"age1qqqqqqqqqqq\"]\n\
          verify = \"weekly\"\n{keep}"), "backup"),
        ("kind = \"verify-backup\"\nbackup = \"nightly\"".to_owned(), "verify-backup"),
        ("kind = \"prune-backups\"\nbackup = \"nightly\"".to_owned(), "prune-backups"),
        ("kind = \"report\"\nreport = \"gpa-ranking\"\nparameters = { year = 2024, since = 2024-01-31 }"
            .to_owned(), "report"),
    ];
    for (text, kind) in kinds {
        let policy = parse(&policy_of(&text)).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(policy.kind.name(), kind);
    }
}

#[test]
fn every_fault_of_a_file_is_told_at_once_with_line_and_key() {
    let error = refused(
        "kind = \"archive\"\nownr = \"me\"\ndescription = \" \"\n[schedule]\ncron = \"61 2 * * *\"\n\
         timezone = \"Mars/Olympus\"\n[[table]]\nname = \"a.b.c\"\nage = \"x.y.z\"\nafter = \"5 parsecs\"\n\
         [[table]]\nname = \"logs\"\nage = \"created_at\"\nafter = \"5 years\"\nwhere = \"1); drop\"\n",
    );
    let expected = [
        "some-policy.toml: `owner` is missing",
        "some-policy.toml:3: `description` must be a text",
        "some-policy.toml:5: `schedule.cron` must be a cron pattern",
        "some-policy.toml:6: `schedule.timezone` must be a time zone",
        "some-policy.toml:8: `table[0].name` must be the name of a table",
        "some-policy.toml:9: `table[0].age` must be a column",
        "some-policy.toml:10: `table[0].after` must be a calendar interval",
        "some-policy.toml:15: `table[1].where` must ",
    ];
    for line in expected {
        assert!(error.lines().any(|found| found.starts_with(line)), "{line}\nis not in\n{error}");
    }
}

#[test]
fn unknown_keys_are_refused_at_every_depth_and_the_known_ones_told() {
    for (from, to, expected) in [
        ("owner  ", "color = 1\nowner", "`color` is not a key here; the keys are"),
        ("window  ", "windows = \"1h\"\nwindow", "`schedule.windows` is not a key"),
        ("max_share", "max_shares = 0.1\nmax_share", "`limits.max_shares` is not a key"),
        ("replica_lag", "lag = \"1s\", replica_lag", "`limits.pause_when.lag` is not a key"),
        ("when_null", "when_nul = \"x\"\nwhen_null", "`table[0].when_nul` is not a key"),
        ("verify = true", "verified = true", "`table[1].export.verified` is not a key"),
        ("by  ", "who = \"x\"\nby", "`approval.who` is not a key"),
    ] {
        let error = refused(&ARCHIVE.replacen(from, to, 1));
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.contains("some-policy.toml:"), "{error}");
    }
}

#[test]
fn wrong_values_are_refused_by_key() {
    for (from, to, expected) in [
        ("5_000_000", "0", "`limits.max_rows` must be a whole number from 1"),
        ("5_000_000", "-5", "`limits.max_rows` must be a whole number from 1"),
        ("0.20", "1.5", "`limits.max_share` must be a share"),
        ("0.20", "0", "`limits.max_share` must be a share"),
        ("0.20", "nan", "`limits.max_share` must be a number"),
        ("\"150ms\"", "\"0ms\"", "`limits.chunk_target` must be a time"),
        ("\"150ms\"", "150", "`limits.chunk_target` must be a text"),
        ("\"manual\"", "\"some\"", "`approval.required_for` must be one of `never`, `manual`"),
        ("\"archive\"", "\"archiv\"", "`kind` must be one of `archive`"),
        ("\"logs\"", "\"visits\"", "`table[1]` names `visits` a second time"),
        ("\"indeterminate\"", "\"old\"", "`table[0].when_null` must be one of `indeterminate`"),
        ("\"parquet\"", "\"csv\"", "`table[1].export.format` must be one of `parquet`"),
        ("max_rows     = 5_000_000", "", "must have `limits.max_rows`"),
        ("kind  ", "timezone = \"UTC\"\nkind", "`timezone` must be `schedule.timezone`"),
        ("kind  ", "kind = \"purge\"\nkind", "is not TOML"),
    ] {
        let error = refused(&ARCHIVE.replacen(from, to, 1));
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let cascade = "kind = \"purge\"\n[[table]]\nname = \"a\"\nage = \"b\"\nafter = \"1 day\"\n\
                   if_referenced = \"cascade\"";
    assert!(refused(&policy_of(cascade)).contains("`table[0].cascade` is missing"));
    let not_cascade = cascade.replace("\"cascade\"", "\"refuse\"") + "\ncascade = [\"c\"]";
    assert!(refused(&policy_of(&not_cascade)).contains("`table[0].cascade` is not a key"));
    assert!(
        refused(&policy_of("kind = \"archive\"\ntable = []")).contains("`table` must be an array")
    );
}

#[test]
fn the_digest_is_of_the_content_and_not_of_the_text() {
    let policy = parse(ARCHIVE).unwrap();
    let digest = policy.digest();
    assert_eq!(digest.len(), 64);
    let reworded = ARCHIVE.replace("owner  ", "# a comment\nowner").replace("5_000_000", "5000000");
    let reworded = reworded.replace("\"24h\"", "\"1d\"").replace("\"5 years\"", "\"60 months\"");
    assert_eq!(parse(&reworded).unwrap().digest(), digest);
    for (from, to) in [
        ("5 years", "4 years"),
        ("0.20", "0.21"),
        ("state <> 'open'", "state <> 'shut'"),
        ("Africa/Harare", "Africa/Lusaka"),
        ("verify = true", "verify = false"),
        ("Old rows", "Older rows"),
    ] {
        assert_ne!(parse(&ARCHIVE.replacen(from, to, 1)).unwrap().digest(), digest, "{from}");
    }
}

#[test]
fn the_classification_is_read_into_classes_treatments_and_links() {
    let text = r#"
[people]
username      = { class = "personal",  treat = "token", length = 20 }
email         = { class = "personal",  treat = "token", suffix = "@erased.invalid" }
password      = { class = "personal",  treat = "unusable_password" }
born          = { class = "quasi",     treat = "truncate", to = "year" }
city          = { class = "quasi",     treat = "keep", reason = "statistics" }
address       = { class = "free_text", treat = "null" }
id            = { class = "none" }

[logs]
subject = ["user_id", { entity = "people", id = "entity_id" }, { through = "visit_id" }]
old        = { class = "personal", treat = "scrub_json", of = "people", keys = ["ip"] }
ip         = { class = "personal", treat = "network", bits = [24, 48] }
agent      = { class = "quasi",    treat = "family" }
"#;
    let classification = Classification::from_toml(text).unwrap();
    let people = &classification.tables[&"people".parse().unwrap()];
    assert!(people.subject.is_empty());
    let column =
        |table: &ClassifiedTable, name: &str| table.columns[&name.parse().unwrap()].clone();
    let email = column(people, "email");
    assert_eq!(email.class(), Class::Personal);
    let Some(Treatment::Token { length: 24, suffix, .. }) = email.treatment() else { panic!() };
    assert_eq!(suffix, "@erased.invalid");
    assert_eq!(column(people, "id").treatment(), None);
    let logs = &classification.tables[&"logs".parse().unwrap()];
    assert_eq!(logs.subject.len(), 3);
    assert_eq!(
        column(logs, "ip").treatment(),
        Some(&Treatment::Network { v4_bits: 24, v6_bits: 48 }),
    );
}

#[test]
fn a_wrong_classification_is_refused_by_column() {
    for (text, expected) in [
        ("[t]\na = { class = \"secret\" }", "classification.toml:2: `t.a.class` must be one of"),
        ("[t]\na = { class = \"personal\" }", "`t.a.treat` is missing"),
        ("[t]\na = { class = \"none\", treat = \"null\" }", "`t.a.treat` is not a key here"),
        ("[t]\na = { class = \"quasi\", treat = \"keep\" }", "`t.a.reason` is missing"),
        ("[t]\na = { class = \"quasi\", treat = \"keep\", reason = \" \" }", "must say why"),
        ("[t]\na = { class = \"quasi\", treat = \"mask\" }", "`t.a.treat` must be one of"),
        (
            "[t]\na = { class = \"quasi\", treat = \"network\", bits = [40, 48] }",
            "`t.a.bits[0]` must be",
        ),
        ("[t]\na = { class = \"quasi\", treat = \"network\", bits = [24] }", "must be two numbers"),
        ("[t]\na = { class = \"quasi\", treat = \"scrub_json\" }", "must say which keys"),
        ("[t]\na = \"none\"", "`t.a` must be a table"),
        ("[t]\nsubject = [\"a\", \"a\"]", "`t.subject[1]` is there twice"),
        ("[t]\nsubject = [{ x = \"a\" }]", "`t.subject[0].id` is missing"),
        ("[t]\nsubject = [{ id = \"a\" }]", "`t.subject[0]` must be a column, "),
        ("[t]\na = { class = \"quasi\", treat = \"token\", length = 8 }", "`t.a.length` must be"),
    ] {
        let faults = Classification::from_toml(text).expect_err(text);
        let error = PolicyError::new(faults).to_string();
        assert!(error.contains(expected), "{text}\n{expected}\n{error}");
    }
}

#[test]
fn a_folder_is_read_whole_and_its_faults_told_together() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("archive-old.toml", ARCHIVE);
    write("README.md", "not a policy");
    write(".hidden.toml", "not a policy");
    write("classification.toml", "[t]\na = { class = \"none\" }");
    let policies = Policies::load(folder.path()).unwrap();
    assert!(policies.get("archive-old").is_some());
    assert_eq!(policies.classification.tables.len(), 1);

    write("Bad Name.toml", ARCHIVE);
    write("archive-new.toml", &ARCHIVE.replace("\"archive\"", "\"shred\""));
    write("classification.toml", "[t]\na = { class = \"nothing\" }");
    let error = Policies::load(folder.path()).unwrap_err();
    let files: Vec<_> = error.faults().iter().map(|fault| fault.file.as_str()).collect();
    assert_eq!(files, ["Bad Name.toml", "archive-new.toml", "classification.toml"]);

    assert!(
        Policies::load(Path::new("no-such-folder"))
            .unwrap_err()
            .to_string()
            .contains("no-such-folder")
    );
}

#[test]
fn the_backup_that_is_verified_or_pruned_must_be_a_policy() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("verify.toml", &policy_of("kind = \"verify-backup\"\nbackup = \"nightly\""));
    let error = Policies::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("verify.toml: `backup` must name a policy of kind `backup`"), "{error}");
    let backup = "kind = \"backup\"\nengine = \"pg_dump\"\nkeep = { daily = 1 }";
    write("nightly.toml", &policy_of(backup));
    assert_eq!(Policies::load(folder.path()).unwrap().policies.len(), 2);
}

#[test]
fn conditions_are_one_expression_that_cannot_leave_its_parentheses() {
    for text in [
        "status <> 'active'",
        "\"Odd name\" = 'it''s (fine)' and (a or not b)",
        "created_at < timestamp '2020-01-01' and name !~ 'x--y'",
        "upper(status) in ('A', 'B')",
        "selected and withdrawn_on is null",
    ] {
        text.parse::<Condition>().unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    for (text, expected) in [
        ("", ConditionError::Empty),
        ("  ", ConditionError::Empty),
        ("true) or (true", ConditionError::Unbalanced),
        ("(true", ConditionError::Unbalanced),
        ("true; drop table x", ConditionError::Character),
        ("true -- more", ConditionError::Character),
        ("true /* more", ConditionError::Character),
        ("a = $1", ConditionError::Character),
        ("a = E'\\''", ConditionError::Character),
        ("a = $$x$$", ConditionError::Character),
        ("a = 'x", ConditionError::Quote),
        ("exists (SELECT 1)", ConditionError::Query),
        ("a in (values (1))", ConditionError::Query),
    ] {
        assert_eq!(text.parse::<Condition>(), Err(expected), "{text}");
    }
    let condition: Condition = "lower(a) = 'x' and pg_sleep (1) is null".parse().unwrap();
    assert!(condition.functions().contains("pg_sleep"));
}

proptest! {
    #[test]
    fn ages_and_times_are_read_back_as_they_are_shown(
        months in 0_u32..12_000, days in 0_u32..366_000, hours in 0_u32..1_000, millis in 1_u64..31_622_400_000,
    ) {
        let text = format!("{months} months {days} days {hours} hours");
        match text.parse::<Age>() {
            Ok(age) => prop_assert_eq!(age.to_string().parse::<Age>(), Ok(age)),
            Err(_) => prop_assert_eq!(months + days + hours, 0),
        }
        let time: Timespan = format!("{millis}ms").parse().unwrap();
        prop_assert_eq!(time.to_string().parse::<Timespan>(), Ok(time));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", line in "[a-z_]{1,9} = [\"0-9a-z\\[\\]{}., ]{0,20}") {
        let _ = parse(&text);
        let _ = parse(&format!("{ARCHIVE}\n{line}\n{text}"));
        let _ = Classification::from_toml(&text);
        let _ = text.parse::<Condition>();
        let _ = text.parse::<Age>();
        let _ = text.parse::<Timespan>();
        let _ = text.parse::<TableName>();
    }

    #[test]
    fn a_condition_in_parentheses_ends_where_its_parentheses_end(text in "[a-c ()'\"<>;$/*-]{0,24}") {
        if let Ok(condition) = text.parse::<Condition>() {
            let quoted = regex::Regex::new("'[^']*'|\"[^\"]*\"").unwrap();
            let bare = quoted.replace_all(condition.as_sql(), "q");
            for escape in ["'", "\"", ";", "$", "--", "/*"] {
                prop_assert!(!bare.contains(escape), "{}", condition);
            }
            let mut depth = 0;
            for c in bare.chars() {
                depth += i32::from(c == '(') - i32::from(c == ')');
                prop_assert!(depth >= 0, "{}", condition);
            }
            prop_assert_eq!(depth, 0);
        }
    }
}

#[test]
fn an_age_is_at_least_another_only_when_it_is_so_on_every_day() {
    let age = |text: &str| text.parse::<Age>().unwrap();
    for (more, less) in [
        ("7 years", "5 years"),
        ("30 days", "4 weeks"),
        ("5 years", "5 years"),
        ("1 year", "364 days"),
        ("1 month", "27 days"),
        ("2 days", "47 hours"),
        ("60 months", "5 years"),
    ] {
        assert!(age(more).is_at_least(age(less)), "{more} {less}");
    }
    for (less, more) in [
        ("5 years", "7 years"),
        ("1 month", "31 days"),
        ("365 days", "1 year"),
        ("24 hours", "1 day"),
    ] {
        assert!(!age(less).is_at_least(age(more)), "{less} {more}");
    }
}
