-- One row per Idempotency-Key of a caller, written in the transaction that does the work. The
-- primary key is what makes two submits with one key one submit, even at the same instant.
create table idempotency_keys (
    user_id integer not null references users (id) on delete cascade,
    idempotency_key varchar(255) not null,
    request_sha256 bytea not null check (octet_length(request_sha256) = 32),
    execution_id bigint references report_executions (id) on delete cascade,
    created_at timestamp with time zone not null default current_timestamp,
    expires_at timestamp with time zone not null,
    primary key (user_id, idempotency_key)
);
create index idx_idempotency_keys_execution_id on idempotency_keys (execution_id);
create index idx_idempotency_keys_expires_at on idempotency_keys (expires_at);
