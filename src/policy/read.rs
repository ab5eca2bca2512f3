//! From TOML to a [`Policy`]. Everything is read before anything is given up, so that one look
//! finds every fault.

use std::num::NonZeroU32;
use std::str::FromStr;

use chrono_tz::Tz;
use serde_json::Map;

use super::conduct::{
    Approval, ApprovalRule, CatchUp, Limits, Overlap, PauseWhen, Schedule, Share,
};
use super::fault::PolicyFault;
use super::kind::{
    Anonymize, AnonymizeOrder, AnonymizeRows, AnonymizeTable, AnonymizeWhen, Archive, ArchiveTable,
    Backup, BackupEngine, BackupVerification, ExpireResults, Export, ExportFormat, IfReferenced,
    KAnonymity, Keep, Kind, OnFewerThanK, PruneBackups, Purge, PurgeTable, ScheduledReport,
    VerifyBackup,
};
use super::name::{PolicyName, TableName};
use super::reader::{Item, Reader, Source};
use super::{Age, Policy, Timespan};

/// The most tables of a policy, and names in a list.
const MOST: usize = 500;
const MAX_TEXT_BYTES: usize = 2_000;
const DEFAULT_APPROVER: &str = "retention.approve";

/// Reads `<name>.toml`.
pub(super) fn policy(name: PolicyName, text: &str) -> Result<Policy, Vec<PolicyFault>> {
    let file = format!("{name}.toml");
    let source = Source::new(&file, text);
    let root = source.parse();
    let built = root.as_ref().and_then(|root| read_policy(name, Reader::new(&source, root)));
    drop(root);
    source.finish(built)
}

fn read_policy(name: PolicyName, root: Reader<'_, '_>) -> Option<Policy> {
    let description = root.required("description").and_then(|item| sentence(&item));
    let owner = root.required("owner").and_then(|item| sentence(&item));
    let enabled = flag(&root, "enabled", true);
    let timing = read_timing(&root);
    let limits = match root.optional("limits") {
        Some(item) => item.table().and_then(read_limits),
        None => Some(Limits::default()),
    };
    let approval = match root.optional("approval") {
        Some(item) => item.table().and_then(read_approval),
        None => Some(default_approval()),
    };
    let kind = read_kind(&root);
    if let (Some(kind), Some((_, Some(_))), Some(limits)) = (&kind, &timing, &limits)
        && kind.is_destructive()
        && limits.max_rows.is_none()
    {
        root.fault(
            "must have `limits.max_rows`, because nobody watches a run that the schedule starts",
        );
    }
    // Of an unknown kind, no key can be told from a wrong one.
    if kind.is_some() {
        root.finish();
    }
    let (time_zone, schedule) = timing?;
    Some(Policy {
        name,
        description: description?,
        owner: owner?,
        enabled: enabled?,
        time_zone,
        schedule,
        limits: limits?,
        approval: approval?,
        kind: kind?,
    })
}

fn read_timing(root: &Reader<'_, '_>) -> Option<(Tz, Option<Schedule>)> {
    let own = root.optional("timezone");
    let Some(item) = root.optional("schedule") else {
        return Some((own.map_or(Some(Tz::UTC), |item| zone(&item))?, None));
    };
    if let Some(own) = own {
        own.fault("must be `schedule.timezone` in a policy with a schedule: there is one zone");
    }
    let table = item.table()?;
    let cron = table.required("cron").and_then(|item| cron(&item));
    let time_zone = table.required("timezone").and_then(|item| zone(&item));
    let catch_up = choice(
        &table,
        "catch_up",
        &[("none", CatchUp::None), ("latest", CatchUp::Latest), ("all", CatchUp::All)],
        CatchUp::Latest,
    );
    let window = timespan(&table, "window", Timespan::from_millis(24 * 3_600_000));
    let overlap = choice(
        &table,
        "overlap",
        &[("skip", Overlap::Skip), ("queue", Overlap::Queue)],
        Overlap::Skip,
    );
    table.finish();
    let schedule =
        Schedule { cron: cron?, catch_up: catch_up?, window: window?, overlap: overlap? };
    Some((time_zone?, Some(schedule)))
}

fn read_limits(table: Reader<'_, '_>) -> Option<Limits> {
    let default = Limits::default();
    let max_rows = optional(&table, "max_rows", |item| item.whole(1..u64::from(u32::MAX) * 1_000));
    let max_share = optional(&table, "max_share", |item| {
        let share = Share::new(item.number()?);
        if share.is_none() {
            item.fault("must be a share, more than 0 and at most 1");
        }
        share
    });
    let chunk_target = timespan(&table, "chunk_target", default.chunk_target);
    let lock_timeout = timespan(&table, "lock_timeout", default.lock_timeout);
    let pause_when = match table.optional("pause_when") {
        Some(item) => item.table().and_then(read_pause_when),
        None => Some(default.pause_when),
    };
    table.finish();
    Some(Limits {
        max_rows: max_rows?,
        max_share: max_share?,
        chunk_target: chunk_target?,
        lock_timeout: lock_timeout?,
        pause_when: pause_when?,
    })
}

fn read_pause_when(table: Reader<'_, '_>) -> Option<PauseWhen> {
    let replica_lag = optional(&table, "replica_lag", Item::parse);
    let oldest_transaction = optional(&table, "oldest_transaction", Item::parse);
    let load_per_core = optional(&table, "load_per_core", |item| {
        let load = item.number().filter(|load| *load > 0.0);
        if load.is_none() {
            item.fault("must be a number above 0");
        }
        load
    });
    let at_most = timespan(&table, "at_most", PauseWhen::default().at_most);
    table.finish();
    Some(PauseWhen {
        replica_lag: replica_lag?,
        oldest_transaction: oldest_transaction?,
        load_per_core: load_per_core?,
        at_most: at_most?,
    })
}

fn default_approval() -> Approval {
    Approval { required_for: ApprovalRule::OverCeiling, by: DEFAULT_APPROVER.to_owned() }
}

fn read_approval(table: Reader<'_, '_>) -> Option<Approval> {
    let rules = [
        ("never", ApprovalRule::Never),
        ("manual", ApprovalRule::Manual),
        ("over_ceiling", ApprovalRule::OverCeiling),
        ("always", ApprovalRule::Always),
    ];
    let required_for = table.required("required_for").and_then(|item| item.choose(&rules));
    let by = match table.optional("by") {
        Some(item) => sentence(&item),
        None => Some(DEFAULT_APPROVER.to_owned()),
    };
    table.finish();
    Some(Approval { required_for: required_for?, by: by? })
}

fn read_kind(root: &Reader<'_, '_>) -> Option<Kind> {
    let item = root.required("kind")?;
    match item.text()? {
        "archive" => tables(root, read_archive_table, |table| &table.name)
            .map(|tables| Kind::Archive(Archive { tables })),
        "anonymize" if root.optional("table").is_some() => {
            tables(root, read_anonymize_table, |table| &table.name)
                .map(|tables| Kind::AnonymizeRows(AnonymizeRows { tables }))
        }
        "anonymize" => read_anonymize(root).map(Kind::Anonymize),
        "purge" => tables(root, read_purge_table, |table| &table.name)
            .map(|tables| Kind::Purge(Purge { tables })),
        "expire-results" => Some(Kind::ExpireResults(ExpireResults {})),
        "backup" => read_backup(root).map(Kind::Backup),
        "verify-backup" => root
            .required("backup")?
            .parse()
            .map(|backup| Kind::VerifyBackup(VerifyBackup { backup })),
        "prune-backups" => root
            .required("backup")?
            .parse()
            .map(|backup| Kind::PruneBackups(PruneBackups { backup })),
        "report" => read_report(root).map(Kind::Report),
        _ => {
            item.fault(
                "must be one of `archive`, `anonymize`, `purge`, `expire-results`, `backup`, \
                 `verify-backup`, `prune-backups`, `report`",
            );
            None
        }
    }
}

/// The `[[table]]`s, none named twice.
fn tables<'s, 'a, T>(
    root: &Reader<'s, 'a>,
    read: impl Fn(Reader<'s, 'a>) -> Option<T>,
    name: impl Fn(&T) -> &TableName,
) -> Option<Vec<T>> {
    let items = root.required("table")?.array(MOST)?;
    let mut found: Vec<T> = Vec::with_capacity(items.len());
    let mut whole = true;
    for item in &items {
        match item.table().and_then(&read) {
            Some(table) => {
                if found.iter().any(|other| name(other) == name(&table)) {
                    item.fault(format!("names `{}` a second time", name(&table)));
                }
                found.push(table);
            }
            None => whole = false,
        }
    }
    whole.then_some(found)
}

fn read_archive_table(table: Reader<'_, '_>) -> Option<ArchiveTable> {
    let name = table.required("name").and_then(|item| item.parse());
    let age = table.required("age").and_then(|item| item.parse());
    let after = table.required("after").and_then(|item| item.parse());
    let condition = optional(&table, "where", Item::parse);
    // Written for the reader of the file: there is one rule.
    choice(&table, "when_null", &[("indeterminate", ())], ());
    let keep_children = flag(&table, "keep_children", false);
    let export = optional(&table, "export", |item| read_export(item.table()?));
    table.finish();
    Some(ArchiveTable {
        name: name?,
        age: age?,
        after: after?,
        condition: condition?,
        keep_children: keep_children?,
        export: export?,
    })
}

fn read_export(table: Reader<'_, '_>) -> Option<Export> {
    let formats = [("parquet", ExportFormat::Parquet)];
    let format = table.required("format").and_then(|item| item.choose(&formats));
    let verify = flag(&table, "verify", true);
    let keep = optional(&table, "keep", Item::parse);
    table.finish();
    Some(Export { format: format?, verify: verify?, keep: keep? })
}

fn read_purge_table(table: Reader<'_, '_>) -> Option<PurgeTable> {
    #[derive(Clone, Copy)]
    enum Rule {
        Refuse,
        Anonymize,
        Cascade,
    }
    let rules =
        [("refuse", Rule::Refuse), ("anonymize", Rule::Anonymize), ("cascade", Rule::Cascade)];
    let name = table.required("name").and_then(|item| item.parse());
    let age = table.required("age").and_then(|item| item.parse());
    let after = table.required("after").and_then(|item| item.parse());
    let condition = optional(&table, "where", Item::parse);
    choice(&table, "when_null", &[("indeterminate", ())], ());
    let if_referenced = match choice(&table, "if_referenced", &rules, Rule::Refuse) {
        Some(Rule::Refuse) => Some(IfReferenced::Refuse),
        Some(Rule::Anonymize) => Some(IfReferenced::Anonymize),
        Some(Rule::Cascade) => table
            .required("cascade")
            .and_then(|item| item.each(MOST, Item::parse))
            .map(IfReferenced::Cascade),
        None => None,
    };
    table.finish();
    Some(PurgeTable {
        name: name?,
        age: age?,
        after: after?,
        condition: condition?,
        if_referenced: if_referenced?,
    })
}

fn read_anonymize_table(table: Reader<'_, '_>) -> Option<AnonymizeTable> {
    let name = table.required("name").and_then(|item| item.parse());
    let age = table.required("age").and_then(|item| item.parse());
    let after = table.required("after").and_then(|item| item.parse());
    let condition = optional(&table, "where", Item::parse);
    choice(&table, "when_null", &[("indeterminate", ())], ());
    let columns = match table.optional("columns") {
        Some(item) => item.each(MOST, Item::parse),
        None => Some(Vec::new()),
    };
    table.finish();
    Some(AnonymizeTable {
        name: name?,
        age: age?,
        after: after?,
        condition: condition?,
        columns: columns?,
    })
}

fn read_anonymize(root: &Reader<'_, '_>) -> Option<Anonymize> {
    let subject = root.required("subject").and_then(|item| item.parse());
    let whens = [("erasures.due", AnonymizeWhen::ErasuresDue)];
    let when = root.required("when").and_then(|item| item.choose(&whens));
    let grace = match root.optional("grace") {
        Some(item) => item.parse(),
        None => Age::from_str("30 days").ok(),
    };
    let orders = [("satellites-first", AnonymizeOrder::SatellitesFirst)];
    let order = choice(root, "order", &orders, AnonymizeOrder::SatellitesFirst);
    let k_anonymity = optional(root, "k_anonymity", |item| read_k_anonymity(item.table()?));
    Some(Anonymize {
        subject: subject?,
        when: when?,
        grace: grace?,
        order: order?,
        k_anonymity: k_anonymity?,
    })
}

fn read_k_anonymity(table: Reader<'_, '_>) -> Option<KAnonymity> {
    let quasi = table.required("quasi").and_then(|item| item.each(MOST, Item::parse));
    let k = table.required("k").and_then(|item| item.whole(2..1_000_001));
    let reactions = [("report", OnFewerThanK::Report), ("fail", OnFewerThanK::Fail)];
    let on_fail = choice(&table, "on_fail", &reactions, OnFewerThanK::Report);
    table.finish();
    let k = u32::try_from(k?).ok().and_then(NonZeroU32::new)?;
    Some(KAnonymity { quasi: quasi?, k, on_fail: on_fail? })
}

fn read_backup(root: &Reader<'_, '_>) -> Option<Backup> {
    let engines = [("pg_dump", BackupEngine::PgDump), ("pgbackrest", BackupEngine::PgBackRest)];
    let engine = root.required("engine").and_then(|item| item.choose(&engines));
    let encrypt_to = match root.optional("encrypt_to") {
        Some(item) => item.each(MOST, recipient),
        None => Some(Vec::new()),
    };
    let frequencies = [
        ("never", BackupVerification::Never),
        ("always", BackupVerification::Always),
        ("daily", BackupVerification::Daily),
        ("weekly", BackupVerification::Weekly),
        ("monthly", BackupVerification::Monthly),
    ];
    let verify = choice(root, "verify", &frequencies, BackupVerification::Weekly);
    let keep = root.required("keep").and_then(|item| item.table()).and_then(read_keep);
    Some(Backup { engine: engine?, encrypt_to: encrypt_to?, verify: verify?, keep: keep? })
}

fn recipient(item: &Item<'_, '_>) -> Option<String> {
    let text = item.text()?;
    if text.len() > 10
        && text.starts_with("age1")
        && text.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return Some(text.to_owned());
    }
    item.fault("must be an age recipient, which begins with `age1`");
    None
}

fn read_keep(table: Reader<'_, '_>) -> Option<Keep> {
    let tier = |key| match table.optional(key) {
        Some(item) => u32::try_from(item.whole(0..10_001)?).ok(),
        None => Some(0),
    };
    let [daily, weekly, monthly, yearly] = ["daily", "weekly", "monthly", "yearly"].map(tier);
    if [daily, weekly, monthly, yearly].iter().all(|tier| *tier == Some(0)) {
        table.fault("must keep at least one backup");
    }
    table.finish();
    Some(Keep { daily: daily?, weekly: weekly?, monthly: monthly?, yearly: yearly? })
}

fn read_report(root: &Reader<'_, '_>) -> Option<ScheduledReport> {
    let report = root.required("report").and_then(|item| item.parse());
    let format = match root.optional("format") {
        Some(item) => sentence(&item),
        None => Some("csv".to_owned()),
    };
    let parameters = match root.optional("parameters") {
        Some(item) => item.table().and_then(|table| {
            let values = table.rest();
            let values = values.iter().map(|(key, item)| Some(((*key).to_owned(), item.json()?)));
            values.collect::<Option<Map<_, _>>>()
        }),
        None => Some(Map::new()),
    };
    // `preserve_order` keeps the file's order, which must not change the digest.
    let parameters = parameters.map(|mut parameters| {
        parameters.sort_keys();
        parameters
    });
    Some(ScheduledReport { report: report?, format: format?, parameters: parameters? })
}

fn flag(table: &Reader<'_, '_>, key: &'static str, default: bool) -> Option<bool> {
    table.optional(key).map_or(Some(default), |item| item.flag())
}

fn choice<T: Copy>(
    table: &Reader<'_, '_>,
    key: &'static str,
    choices: &[(&str, T)],
    default: T,
) -> Option<T> {
    table.optional(key).map_or(Some(default), |item| item.choose(choices))
}

fn timespan(table: &Reader<'_, '_>, key: &'static str, default: Timespan) -> Option<Timespan> {
    table.optional(key).map_or(Some(default), |item| item.parse())
}

/// `Some(None)` where the key is not there, `None` where its value is wrong.
#[expect(clippy::option_option, reason = "absent and wrong are two things")]
fn optional<'s, 'a, T>(
    table: &Reader<'s, 'a>,
    key: &'static str,
    read: impl Fn(&Item<'s, 'a>) -> Option<T>,
) -> Option<Option<T>> {
    match table.optional(key) {
        Some(item) => read(&item).map(Some),
        None => Some(None),
    }
}

/// A text with something in it.
fn sentence(item: &Item<'_, '_>) -> Option<String> {
    let text = item.text()?.trim();
    if text.is_empty() || text.len() > MAX_TEXT_BYTES {
        item.fault(format!("must be a text of 1 to {MAX_TEXT_BYTES} bytes"));
        return None;
    }
    Some(text.to_owned())
}

fn zone(item: &Item<'_, '_>) -> Option<Tz> {
    let zone = item.text()?.parse().ok();
    if zone.is_none() {
        item.fault("must be a time zone by its IANA name, like `Africa/Harare`");
    }
    zone
}

fn cron(item: &Item<'_, '_>) -> Option<String> {
    let text = item.text()?;
    match croner::Cron::from_str(text) {
        Ok(_) if !text.starts_with('@') => {
            Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        _ => {
            item.fault(
                "must be a cron pattern of five fields, or six with seconds, like `30 2 * * SUN`",
            );
            None
        }
    }
}
