-- Widens audit_logs.id, its sequence, and entity_id to bigint.
--
-- 13.6 audit rows a second use up an integer id in five years, and the failure would come to
-- every audited action at once. entity_id follows because it names rows of any table, this
-- one and later ones with bigint keys included.
--
-- Rewrites the table and its indexes under an exclusive lock: for the maintenance window.
--
-- Down: no data is lost; it refuses when an id no longer fits into an integer.

alter table audit_logs
    alter column id type bigint,
    alter column entity_id type bigint;

alter sequence audit_logs_id_seq as bigint;
