-- Drops users.deleted_at. LOSES when, and that, deletion was asked for: note the waiting
-- accounts first. They are closed here, so that nobody who asked to be deleted can be signed
-- in as again just because the column is gone.

update users set is_active = false where deleted_at is not null;

alter table users drop column deleted_at;
