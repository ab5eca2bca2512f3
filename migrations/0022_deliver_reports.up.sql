-- Scheduled reports are brought to their owner: to a webhook, by e-mail, by a copy in the store.
--
-- An occurrence that has started something, or could not, waits here until what it started has
-- ended; then one event is stored, with a delivery for each way that the schedule asks for. E-mail
-- addresses are not stored: the owner's is looked up when a mail is sent.
alter table schedules
    add column deliver jsonb not null default '{}';

alter table schedule_occurrences
    add column delivery varchar(10) check (delivery in ('waiting', 'started'));
create index idx_schedule_occurrences_delivery on schedule_occurrences (due_at)
    where delivery = 'waiting';

alter table outbox_deliveries
    alter column webhook_id drop not null,
    add column channel varchar(10) not null default 'webhook'
        check (channel in ('webhook', 'email', 'copy')),
    add column schedule varchar(100),
    -- No foreign key: the record of what was sent must not keep an account from being purged.
    add column owner_id integer,
    add column execution_id bigint,
    add column attach boolean not null default false,
    add column copy_to varchar(200),
    add constraint outbox_deliveries_webhook_target
        check ((channel = 'webhook') = (webhook_id is not null)),
    add constraint outbox_deliveries_owner_target
        check (channel = 'webhook' or (schedule is not null and owner_id is not null)),
    add constraint outbox_deliveries_copy_target
        check (channel <> 'copy' or (execution_id is not null and copy_to is not null));
create index idx_outbox_deliveries_reports_due on outbox_deliveries (next_attempt_at)
    where status = 'pending' and webhook_id is null;
create index idx_outbox_deliveries_schedule on outbox_deliveries (schedule, id desc)
    where schedule is not null;
create index idx_outbox_deliveries_copies on outbox_deliveries (execution_id)
    where channel = 'copy';
