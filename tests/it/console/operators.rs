//! The pages of operators: previews, runs, holds, erasures, backups.

use super::{Site, location};

/// Every page that takes no number, with the permission that it asks for.
const PAGES: &[(&str, &str)] = &[
    ("/overview", "executions.view_all"),
    ("/policies", "retention.view"),
    ("/policies/archive-audit-logs", "retention.view"),
    ("/policies/archive-audit-logs?preview=1", "retention.view"),
    ("/archives", "retention.view"),
    ("/runs", "retention.view"),
    ("/runs?status=failed", "retention.view"),
    ("/holds", "retention.view"),
    ("/erasures", "users.manage"),
    ("/queues", "executions.view_all"),
    ("/audit", "audit.view"),
    ("/audit?action=token.created&user_id=1&from=2026-01-01&until=x&before=9", "audit.view"),
    ("/webhooks", "webhooks.manage"),
    ("/backups", "backups.view"),
];

impl Site {
    /// Adds permissions that the sample roles do not give.
    pub async fn grant(&self, username: &str, codename: &str) {
        sqlx::query(
            "with permission as (
                 insert into permissions (codename, name) values ($2, $2)
                 on conflict (codename) do update set name = excluded.name
                 returning id
             )
             insert into role_permissions (role_id, permission_id)
             select ur.role_id, permission.id
               from users u
               join user_roles ur on ur.user_id = u.id
              cross join permission
              where u.username = $1
             on conflict do nothing",
        )
        .bind(username)
        .bind(codename)
        .execute(&self.app.services.db)
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn pages_open_for_those_who_may_and_for_nobody_else() {
    let site = Site::start().await;
    let bystander = site.bystander().await;
    let nobody = site.visitor(&bystander).await;
    for (path, codename) in PAGES {
        let visitor = site.visitor_who_may(codename).await;
        visitor.page(path).await;
        assert_eq!(nobody.get(path).await.status(), 403, "{path}");
    }
    for (path, fields) in [
        ("/policies/archive-audit-logs/runs", vec![("digest", "x")]),
        ("/runs/1/approve", vec![]),
        ("/runs/1/cancel", vec![]),
        ("/holds", vec![("scope", "table"), ("table", "users"), ("reason", "x")]),
        ("/holds/1/release", vec![("reason", "x")]),
        ("/erasures", vec![("subject_id", "1")]),
        ("/erasures/1/cancel", vec![]),
        ("/backups/20260301T013000Z-1a2b3c4d/verify", vec![]),
        ("/queues/reports/pause", vec![]),
        ("/workers/somebody/drain", vec![]),
        ("/archives/audit_logs/restore", vec![("which", "all")]),
        ("/definitions", vec![("slug", "x"), ("title", "x"), ("query", "select 1")]),
        (
            "/webhooks",
            vec![("name", "portal"), ("url", "https://example.org"), ("events", "run.finished")],
        ),
        ("/webhooks/portal/ping", vec![]),
    ] {
        let status = nobody.post(path, &fields).await.status().as_u16();
        assert!([403, 404].contains(&status), "{path}: {status}");
    }
}

#[tokio::test]
async fn a_policy_is_previewed_approved_by_another_run_and_taken_back() {
    let site = Site::start().await;
    let asking = site.username_who_may("retention.run").await;
    let visitor = site.visitor(&asking).await;
    let page = visitor.page("/policies/archive-audit-logs?preview=1").await;
    assert!(page.contains("audit_logs") && page.contains("<svg class=\"chart\""), "{page}");
    let digest = page.split("name=\"digest\" value=\"").nth(1).expect("a digest");
    let digest = digest.split('"').next().unwrap().to_owned();
    let stale = visitor.post("/policies/archive-audit-logs/runs", &[("digest", "00")]).await;
    assert_eq!(stale.status(), 409);
    assert!(stale.text().await.unwrap().contains("digest"));
    let started = visitor.post("/policies/archive-audit-logs/runs", &[("digest", &digest)]).await;
    assert_eq!(started.status(), 303, "{}", started.text().await.unwrap());
    let path = location(&started).to_owned();
    let id: i64 = path.rsplit('/').next().unwrap().parse().unwrap();
    let own = visitor.post(&format!("{path}/approve"), &[]).await;
    assert_eq!(own.status(), 409, "nobody approves their own run");
    let other = second(&site, &asking).await;
    let approved = site.visitor(&other).await.post(&format!("{path}/approve"), &[]).await;
    assert_eq!(approved.status(), 303, "{}", approved.text().await.unwrap());
    let worker = site.app.start_worker().await;
    site.app
        .wait_for("the run to end", async || {
            let run = site.app.services.show_run(&site.app.operator(), id).await.unwrap().run;
            run.status.is_final()
        })
        .await;
    worker.stop().await;
    let page = visitor.page(&path).await;
    assert!(page.contains("completed") && page.contains("/certificate"), "{page}");
    let archived = "select count(*) from archive.audit_logs";
    assert!(site.app.number(archived).await > 1);
    site.app
        .execute(
            "insert into audit_logs (id, action, entity_type)
             select min(id), 'x', 'y' from archive.audit_logs",
        )
        .await;
    assert!(visitor.page("/archives").await.contains("/archives/audit_logs/restore"));
    let restore =
        async |fields: &[(&str, &str)]| visitor.post("/archives/audit_logs/restore", fields).await;
    for wrong in [vec![("which", "run"), ("run_id", "x")], vec![("which", "keys")], vec![]] {
        assert_eq!(restore(&wrong).await.status(), 422, "{wrong:?}");
    }
    let back = restore(&[("which", "run"), ("run_id", &id.to_string())]).await;
    assert_eq!(back.status(), 200);
    let page = back.text().await.unwrap();
    assert!(page.contains("1 stay in the archive"), "{page}");
    assert!(page.contains("1 whose key another row has"), "{page}");
    assert_eq!(site.app.number(archived).await, 1);
    assert_eq!(site.audited("archive.restored").await, 1);
}

#[tokio::test]
async fn what_a_schedule_missed_is_run() {
    let site = Site::start().await;
    site.app.define("numbers", "select 1 as n").await;
    let visitor = site.visitor_who_may("reports.run").await;
    let fields = [("schedule_name", "daily"), ("cron", "0 0 * * *"), ("time_zone", "UTC")];
    assert_eq!(visitor.post("/reports/numbers/schedules", &fields).await.status(), 303);
    let fill =
        async |fields: &[(&str, &str)]| visitor.post("/schedules/daily/backfill", fields).await;
    for wrong in [
        vec![],
        vec![("from", "2025-01-01")],
        vec![("from", "2025-01-03"), ("until", "2025-01-01")],
        vec![("from", "2025-01-03"), ("until", "2999-01-01")],
        vec![("from", "yesterday"), ("until", "2025-01-01")],
    ] {
        assert_eq!(fill(&wrong).await.status(), 422, "{wrong:?}");
    }
    let filled = fill(&[("from", "2025-01-01"), ("until", "2025-01-03")]).await;
    assert_eq!(filled.status(), 303, "{}", filled.text().await.unwrap());
    let page = visitor.page(location(&filled)).await;
    assert!(page.contains("is on its way") && page.contains("2025-01-02"), "{page}");
    let waiting = "select count(*) from schedule_occurrences
                    where schedule = 'daily' and status = 'pending' and reason = 'backfill'";
    assert_eq!(site.app.number(waiting).await, 2);
    assert_eq!(site.audited("schedule.backfilled").await, 1);
}

#[tokio::test]
async fn a_report_is_made_changed_and_deleted() {
    let site = Site::start().await;
    site.app.define("template", "select 1 as n").await;
    let visitor = site.visitor_who_may("reports.manage").await;
    assert!(visitor.page("/reports").await.contains("Make a report"));
    let new = |slug: &'static str, query: &'static str| {
        [("slug", slug), ("title", "Counted"), ("query", query)]
    };
    for (slug, query, status, told) in [
        ("No Slug", "select 1 as n", 422, "slug"),
        ("counted", "select nothing from nowhere", 422, "query"),
        ("template", "select 1 as n", 409, "templates"),
    ] {
        let refused = visitor.post("/definitions", &new(slug, query)).await;
        assert_eq!(refused.status(), status, "{slug}");
        let page = refused.text().await.unwrap();
        assert!(page.contains(told) && page.contains("role=\"alert\""), "{slug}: {page}");
    }
    let made = visitor.post("/definitions", &new("counted", "select 1 as n")).await;
    assert_eq!(made.status(), 303, "{}", made.text().await.unwrap());
    assert!(visitor.page(location(&made)).await.contains("select 1 as n"));
    assert!(visitor.page("/reports/counted").await.contains("/reports/counted/definition"));
    let change = async |definition: &str| {
        visitor.post("/reports/counted/definition", &[("definition", definition)]).await
    };
    assert_eq!(change("not JSON").await.status(), 422);
    let changed = change(r#"{"title": "Counted", "query": "select 2 as n", "tags": ["a"]}"#).await;
    assert_eq!(changed.status(), 303, "{}", changed.text().await.unwrap());
    assert!(visitor.page("/reports/counted/definition").await.contains("select 2 as n"));
    let runner = site.visitor("ana").await;
    assert!(!runner.page("/reports/counted").await.contains("/definition"));
    assert_eq!(runner.get("/reports/counted/definition").await.status(), 403);
    assert_eq!(visitor.post("/reports/counted/delete", &[]).await.status(), 303);
    assert_eq!(visitor.get("/reports/counted").await.status(), 404);
    assert_eq!(site.audited("report.stored").await, 2);
    assert_eq!(site.audited("report.deleted").await, 1);
}

/// Another account that may approve.
pub async fn second(site: &Site, first: &str) -> String {
    sqlx::query_scalar(
        "select u.username
           from users u
           join user_roles ur on ur.user_id = u.id
           join role_permissions rp on rp.role_id = ur.role_id
           join permissions p on p.id = rp.permission_id
          where p.codename = 'retention.approve' and u.username <> $1
            and u.is_active and u.deleted_at is null
          order by u.id
          limit 1",
    )
    .bind(first)
    .fetch_one(&site.app.services.db)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_hold_is_placed_and_released() {
    let site = Site::start().await;
    let visitor = site.visitor_who_may("holds.manage").await;
    let refused = visitor.post("/holds", &[("scope", "table"), ("table", "users")]).await;
    assert_eq!(refused.status(), 422);
    let fields = [("scope", "table"), ("table", "audit_logs"), ("reason", "<b>case 7</b>")];
    let placed = visitor.post("/holds", &fields).await;
    assert_eq!(placed.status(), 303, "{}", placed.text().await.unwrap());
    let page = visitor.page(location(&placed)).await;
    assert!(page.contains("in force") && page.contains("&lt;b&gt;case 7"), "{page}");
    let id = page.split("/holds/").nth(1).unwrap().split('/').next().unwrap();
    let released = visitor.post(&format!("/holds/{id}/release"), &[("reason", "over")]).await;
    assert_eq!(released.status(), 303);
    assert!(visitor.page("/holds").await.contains("ended"));
}

#[tokio::test]
async fn an_erasure_is_requested_and_called_back() {
    let site = Site::start().await;
    let visitor = site.visitor_who_may("users.manage").await;
    let person: i32 = sqlx::query_scalar(
        "select id from users where is_active and deleted_at is null and not is_staff
          order by id desc limit 1",
    )
    .fetch_one(&site.app.services.db)
    .await
    .unwrap();
    let asked = visitor.post("/erasures", &[("subject_id", &person.to_string())]).await;
    assert_eq!(asked.status(), 303, "{}", asked.text().await.unwrap());
    let page = visitor.page("/erasures").await;
    let id = page.split("action=\"/erasures/").nth(1).expect("it can be called back");
    let id = id.split('/').next().unwrap().to_owned();
    let cancelled = visitor.post(&format!("/erasures/{id}/cancel"), &[]).await;
    assert_eq!(cancelled.status(), 303, "{}", cancelled.text().await.unwrap());
    assert!(visitor.page("/erasures").await.contains("cancelled"));
}

#[tokio::test]
async fn a_queue_is_paused_and_a_worker_drained() {
    let site = Site::start().await;
    let visitor = site.visitor_who_may("queues.manage").await;
    let worker = site.app.start_worker().await;
    let page = visitor.page("/queues").await;
    let id = page.split("/workers/").nth(1).expect("the worker").split('/').next().unwrap();
    for (path, shown) in [
        ("/queues/reports/pause".to_owned(), "paused"),
        ("/queues/reports/resume".to_owned(), "active"),
        (format!("/workers/{id}/drain"), "draining"),
    ] {
        let changed = visitor.post(&path, &[]).await;
        assert_eq!(changed.status(), 303, "{}", changed.text().await.unwrap());
        assert!(visitor.page(location(&changed)).await.contains(shown), "{path}");
    }
    worker.stop().await;
    for (path, status) in [("/queues/no-such/pause", 404), ("/queues/reports/explode", 404)] {
        assert_eq!(visitor.post(path, &[]).await.status(), status, "{path}");
    }
    let auditor = site.visitor_who_may("audit.view").await;
    let page = auditor.page("/audit?action=queue.paused").await;
    assert!(page.contains("<td class=\"mono\">queue.paused</td>"), "{page}");
    assert!(!page.contains("<td class=\"mono\">queue.resumed</td>"));
}

#[tokio::test]
async fn a_webhook_is_made_tried_out_and_deleted() {
    let site = Site::start().await;
    let visitor = site.visitor_who_may("webhooks.manage").await;
    let address = format!("{}/nowhere", site.http.base);
    let refused = visitor.post("/webhooks", &[("name", "portal"), ("url", &address)]).await;
    assert_eq!(refused.status(), 422);
    let fields = [
        ("name", "portal"),
        ("url", &address),
        ("events", "run.finished"),
        ("events", "execution.failed"),
    ];
    let made = visitor.post("/webhooks", &fields).await;
    let status = made.status();
    let page = made.text().await.unwrap();
    assert!(status == 200 && page.contains("whsec_"), "{status}: {page}");
    assert!(!visitor.page("/webhooks/portal").await.contains("whsec_"), "once");
    for (verb, shown) in [
        ("ping", "webhook.ping"),
        ("disable", "by_hand"),
        ("enable", "active"),
        ("replay", "Messages"),
    ] {
        let changed = visitor.post(&format!("/webhooks/portal/{verb}"), &[]).await;
        assert_eq!(changed.status(), 303, "{verb}: {}", changed.text().await.unwrap());
        assert!(visitor.page(location(&changed)).await.contains(shown), "{verb}");
    }
    site.app
        .execute(
            "update outbox_deliveries set status = 'failed', ended_at = now(), ticket_at = null",
        )
        .await;
    let page = visitor.page("/webhooks/portal").await;
    let id = page.split("name=\"delivery\" value=\"").nth(1).expect("it can be sent again");
    let id = id.split('"').next().unwrap();
    for (delivery, status) in [("x", 404), ("0", 404), (id, 303), (id, 409)] {
        let replayed = visitor.post("/webhooks/portal/replay", &[("delivery", delivery)]).await;
        assert_eq!(replayed.status(), status, "{delivery}");
    }
    let secret = visitor.post("/webhooks/portal/secret", &[]).await;
    assert!(secret.text().await.unwrap().contains("whsec_"));
    assert_eq!(visitor.post("/webhooks/portal/delete", &[]).await.status(), 303);
    assert_eq!(visitor.get("/webhooks/portal").await.status(), 404);
    for action in ["webhook.created", "webhook.pinged", "webhook.secret_rotated", "webhook.deleted"]
    {
        assert_eq!(site.audited(action).await, 1, "{action}");
    }
}

#[tokio::test]
async fn the_overview_draws_what_was_counted_and_what_waits_for_policies() {
    let site = Site::start().await;
    site.app
        .execute(
            "insert into policy_backlogs (policy, taken_at, eligible, held, indeterminate, blocked,
                                          is_over_ceiling)
             values ('archive-audit-logs', now(), 1234, 5, 0, 2, false)",
        )
        .await;
    let visitor = site.visitor("admin").await;
    let page = visitor.page("/overview").await;
    assert!(page.contains("archive-audit-logs: 1241"), "eligible, held and blocked: {page}");
    // It is counted in the background, and here soon.
    site.app
        .wait_for("the count of the days", async || {
            let page = visitor.page("/overview").await;
            page.contains("Executions by day and outcome") && !page.contains("being counted")
        })
        .await;
}
