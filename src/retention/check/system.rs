//! Policies as one system: what each of them is right to say, but not together.

use std::collections::BTreeMap;

use super::super::archive::{archive_name, is_archive_of};
use super::super::catalog::Catalog;
use super::super::sql::TableName;
use super::tables::{Ruled, Takes, ruled};
use super::{Findings, file_of, table_name};
use crate::policy::{IfReferenced, Kind, Policies, Policy};

/// A rule and the file it is in.
struct Placed<'a> {
    file: String,
    kind: &'static str,
    rule: Ruled<'a>,
}

pub(super) fn check(catalog: &Catalog, policies: &Policies, findings: &mut Findings) {
    // One that is switched off says nothing.
    let enabled: Vec<_> = policies.policies.values().filter(|policy| policy.enabled).collect();
    let rules: Vec<_> = enabled
        .iter()
        .flat_map(|policy| {
            ruled(policy).into_iter().map(|rule| Placed {
                file: file_of(policy),
                kind: policy.kind.name(),
                rule,
            })
        })
        .collect();
    check_twice(&rules, findings);
    check_subjects(&enabled, findings);
    for placed in &rules {
        check_children(catalog, &rules, placed, findings);
        check_order(&rules, placed, findings);
    }
}

fn check_twice(rules: &[Placed<'_>], findings: &mut Findings) {
    let mut seen: BTreeMap<(&TableName, &str), &str> = BTreeMap::new();
    for Placed { file, kind, rule } in rules {
        if let Some(other) = seen.insert((&rule.name, kind), file) {
            let message = format!("is in {other} too: two policies of kind `{kind}` would race");
            findings.error(file, rule.name.plain(), message);
        }
    }
}

fn check_subjects(enabled: &[&Policy], findings: &mut Findings) {
    let mut seen: BTreeMap<TableName, String> = BTreeMap::new();
    for policy in enabled {
        let Kind::Anonymize(anonymize) = &policy.kind else { continue };
        let file = file_of(policy);
        if let Some(other) = seen.insert(table_name(&anonymize.subject), file.clone()) {
            let message = format!("is the subject of {other} too: keep one of them");
            findings.error(&file, &anonymize.subject, message);
        }
    }
}

/// Rows that reference this table's: do they leave in time, and where do they point then?
fn check_children(
    catalog: &Catalog,
    rules: &[Placed<'_>],
    placed: &Placed<'_>,
    findings: &mut Findings,
) {
    let Placed { file, kind: _, rule } = placed;
    let Some(table) = catalog.table(&rule.name) else { return };
    if matches!(rule.takes, Takes::Anonymize) {
        return; // its rows stay
    }
    for key in table.referenced_by.iter().filter(|key| key.child != rule.name) {
        let child = key.child.plain();
        let own: Vec<_> = rules.iter().filter(|other| other.rule.name == key.child).collect();
        if stays_behind(rule, &key.child) {
            if own.is_empty() {
                keeps_for_ever(placed, &child, findings);
            }
            for other in own.iter().filter(|other| !rule.after.is_at_least(other.rule.after)) {
                let message = format!(
                    "leaves after {}, but rows of `{child}` that reference it stay for {} \
                     ({}): let the parent stay for as long",
                    rule.after, other.rule.after, other.file,
                );
                findings.error(file, rule.name.plain(), message);
            }
        }
        if let Takes::Purge(IfReferenced::Refuse | IfReferenced::Cascade(_)) = rule.takes
            && own.iter().any(|other| matches!(other.rule.takes, Takes::Archive { .. }))
            && !is_purged_by_then(rules, rule, &archive_name(&key.child))
        {
            let message = format!(
                "is deleted, and archived rows of `{child}` would point at nothing: purge `{}` \
                 first, or set if_referenced = \"anonymize\"",
                archive_name(&key.child).plain(),
            );
            findings.error(file, rule.name.plain(), message);
        }
    }
}

/// Whether a row of the child keeps its parent from leaving.
fn stays_behind(rule: &Ruled<'_>, child: &TableName) -> bool {
    match rule.takes {
        Takes::Archive { keep_children } => !keep_children,
        Takes::Purge(IfReferenced::Anonymize) | Takes::Anonymize => false,
        Takes::Purge(IfReferenced::Refuse) => true,
        Takes::Purge(IfReferenced::Cascade(named)) => {
            !named.iter().any(|name| table_name(name) == *child)
        }
    }
}

fn keeps_for_ever(placed: &Placed<'_>, child: &str, findings: &mut Findings) {
    let Placed { file, kind: _, rule } = placed;
    let about = rule.name.plain();
    match rule.takes {
        Takes::Archive { .. } => {
            let message = format!(
                "is archived, but no policy moves `{child}`, whose rows keep theirs: archive \
                 `{child}` too, or set keep_children = true",
            );
            findings.error(file, about, message);
        }
        // Said so: if_referenced = "refuse" is what an operator writes who means it.
        Takes::Purge(_) | Takes::Anonymize => {
            let message = format!("is never deleted while rows of `{child}` reference it");
            findings.warning(file, about, message);
        }
    }
}

fn is_purged_by_then(rules: &[Placed<'_>], parent: &Ruled<'_>, archive: &TableName) -> bool {
    rules.iter().any(|other| {
        other.rule.name == *archive
            && matches!(other.rule.takes, Takes::Purge(_))
            && parent.after.is_at_least(other.rule.after)
    })
}

/// A row is archived before it is deleted, and stays in the archive for a while.
fn check_order(rules: &[Placed<'_>], placed: &Placed<'_>, findings: &mut Findings) {
    let Placed { file, kind: _, rule: purge } = placed;
    let Takes::Purge(_) = purge.takes else { return };
    let archives = rules.iter().filter(|other| matches!(other.rule.takes, Takes::Archive { .. }));
    for archive in archives.filter(|archive| archive.rule.age == purge.age) {
        let Ruled { name, after, .. } = &archive.rule;
        if *name == purge.name && after.is_at_least(purge.after) {
            let message = format!(
                "is deleted after {}, before {} archives it after {after}: one of the two is wrong",
                purge.after, archive.file,
            );
            findings.error(file, purge.name.plain(), message);
        }
        if is_archive_of(&purge.name, name) && after.is_at_least(purge.after) {
            let message = format!(
                "is deleted after {}, as soon as {} has archived it after {after}: keep it longer, \
                 or purge the live table",
                purge.after, archive.file,
            );
            findings.error(file, purge.name.plain(), message);
        }
    }
}
