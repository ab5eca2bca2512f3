-- Loses the memory of keys: a client that repeats a submit from before starts a second execution.
drop table idempotency_keys;
