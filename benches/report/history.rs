//! What a service has after two busy years: what pages are measured with.

use crate::ground::{Ground, RUN};
use crate::session::say;

/// Finished executions.
pub const EXECUTIONS: u64 = 1_000_000;
/// Reports that were run; the first of them most, the last seldom.
pub const REPORTS: u32 = 20;
/// Due times of one schedule.
pub const OCCURRENCES: u64 = 100_000;

/// Roles as an application has them.
const ROLES: &str = "
with analyst as (
    insert into roles (name) values ('analyst') returning id
), permission as (
    insert into permissions (codename, name)
    values ('reports.view', 'See reports'), ('reports.run', 'Run reports')
    on conflict (codename) do update set name = excluded.name
    returning id
), granted as (
    insert into role_permissions (role_id, permission_id)
    select analyst.id, permission.id from analyst cross join permission
)
insert into user_roles (user_id, role_id)
select users.id, analyst.id from users cross join analyst where users.id <= 6000";

/// Copies of a completed execution, spread over two years, 5,000 users (the second has a tenth of
/// all), reports from frequent to rare, and outcomes. `{columns}` are those that copies share.
const COPIES: &str = "
insert into report_executions
       (executed_by, report_definition_id, definition_version, status, error_code, error_message,
        created_at, run_at, started_at, completed_at, expires_at, result_file_path, {columns})
select case when n % 10 = 0 then 2 else 3 + (n * 7919) % 5000 end,
       d.id, d.version,
       case when n % 100 < 4 then 'failed' when n % 100 < 6 then 'cancelled'
            when at > now() - interval '30 days' then 'completed' else 'expired' end,
       case when n % 100 < 4 then 'query_failed' end,
       case when n % 100 < 4 then 'the query failed' end,
       at, at, at + interval '1 second', at + interval '20 seconds', at + interval '30 days',
       case when n % 100 >= 6 and at > now() - interval '30 days' then e.result_file_path end,
       {columns}
  from (select * from report_executions where status = 'completed' order by id limit 1) e
 cross join generate_series(1, {executions}::bigint) n
 cross join lateral (
       select now() - interval '730 days' * (1 - n / {executions}::float8) as at) time
  join (select r.id, r.slug, max(v.version) as version
          from report_definitions r
          join report_definition_versions v on v.report_definition_id = r.id
         group by r.id, r.slug) d
    on d.slug = case when n % 50000 = 7 then 'rare'
                     else 'report-'
                          || 1 + floor({reports} * power((n * 7919 % 1000) / 1000.0, 3)) end";

/// What is beside executions.
const BESIDE: [&str; 10] = [
    "insert into audit_logs (user_id, action, entity_type, entity_id, new_values, created_at)
     select executed_by, 'execution.submitted', 'report_executions', id, '{\"format\": \"csv\"}',
            created_at
       from report_executions
      order by id",
    "insert into schedules (name, report, owner_id, cron, time_zone, next_due_at, paused_at,
                            pause_reason)
     select 'nightly-' || n, 'report-1', 2 + n % 10, '0 2 * * *', 'UTC', now() + interval '9 hours',
            now(), 'by_hand'
       from generate_series(1, 100) n",
    "insert into schedule_occurrences (schedule, due_at, status, execution_id)
     select 'nightly-1', now() - n * interval '1 minute', 'done', 1 + n
       from generate_series(1, {occurrences}) n",
    "insert into lifecycle_runs (policy, kind, policy_digest, code_version, as_of, status, origin,
                                 created_at, started_at, completed_at)
     select policy, kind, policy_digest, code_version, as_of,
            case when n % 50 = 0 then 'failed' else 'completed' end, origin,
            now() - n * interval '1 hour', now() - n * interval '1 hour',
            case when n % 50 <> 0 then now() - n * interval '1 hour' end
       from (select * from lifecycle_runs order by id limit 2) r
      cross join generate_series(1, 5000) n",
    "insert into holds (scope, table_name, reason, released_at, release_reason)
     select 'table', 'audit_logs', 'case ' || n, now(), 'over' from generate_series(1, 5000) n",
    "insert into erasures (subject_table, subject_id, status, source, due_at, key_id, ledger_token,
                           run_at, verified_at, completed_at)
     select 'users', (1000000 + n)::text, 'completed', 'request', now(), 'k', repeat('a', 64),
            now(), now(), now()
       from generate_series(1, 20000) n",
    "insert into backups (id, taken_at, finished_at, purpose, database_name, server_version,
                          size_bytes, dump_bytes, row_count, duration_ms, encrypted)
     select to_char(at, 'YYYYMMDD') || 'T013000Z-' || lpad(to_hex(n), 8, '0'), at, at,
            'scheduled', 'bench', '15', 1000000 + n, 900000, 1, 1, true
       from generate_series(1, 400) n
      cross join lateral (select now() - n * interval '1 day' as at) time",
    "insert into api_tokens (user_id, name, prefix, token_sha256)
     select 3 + n % 5000, 'token ' || n, 'rgs_x' || n, sha256(n::text::bytea)
       from generate_series(1, 20000) n",
    "insert into webhooks (name, url, events, key_id, secret_sealed)
     values ('portal', 'https://portal.example/hook', '{backup.failed}', 'k', '')",
    "with event as (
         insert into outbox_events (type, data)
         select 'backup.failed', '{}' from generate_series(1, 100000)
         returning id
     )
     insert into outbox_deliveries (event_id, webhook_id, status, ended_at)
     select event.id, webhooks.id, 'delivered', now() from event cross join webhooks",
];

/// Roles, before anybody asks for a token.
pub fn make_roles(ground: &Ground) -> anyhow::Result<()> {
    ground.sql(RUN, ROLES).map(drop)
}

/// All of it; a completed execution must be there.
pub fn make(ground: &Ground) -> anyhow::Result<()> {
    say(&format!("making {EXECUTIONS} executions over two years, and what is beside them"))?;
    let columns = ground.sql(
        RUN,
        "select string_agg(quote_ident(attname), ', ') from pg_attribute
          where attrelid = 'report_executions'::regclass and attnum > 0 and not attisdropped
            and attname <> all ('{id,reuse_key,executed_by,report_definition_id,
                                  definition_version,status,error_code,error_message,created_at,
                                  run_at,started_at,completed_at,expires_at,result_file_path,
                                  shared_from,format_of}')",
    )?;
    let copies = COPIES
        .replace("{columns}", &columns)
        .replace("{executions}", &EXECUTIONS.to_string())
        .replace("{reports}", &REPORTS.to_string());
    ground.sql(RUN, &copies)?;
    for statement in BESIDE {
        ground.sql(RUN, &statement.replace("{occurrences}", &OCCURRENCES.to_string()))?;
    }
    for statement in ["vacuum (analyze)", "checkpoint"] {
        ground.sql(RUN, statement)?;
    }
    Ok(())
}
