-- Lets an account be deleted softly: users.deleted_at is when its deletion was asked for, null
-- for an account that lives. No other column says so (is_active is also false for accounts
-- that are merely locked), and the 30 days of grace before the permanent deletion have to be
-- counted from something.
--
-- The index holds only the accounts that wait, so it stays small, costs live accounts
-- nothing, and gives the purge its rows oldest first.
--
-- Down: LOSES when, and that, deletion was asked for. The accounts stay closed (is_active false).

alter table users add column deleted_at timestamp with time zone;

comment on column users.deleted_at is
    'When deletion of this account was requested; null while it lives.';

create index idx_users_deleted_at on users (deleted_at) where deleted_at is not null;
