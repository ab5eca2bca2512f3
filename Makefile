# The few commands people type. Each is one line over cargo and script/.
# With DATABASE_URL set they use that server, else a private PostgreSQL of their own.

registrar := $(or $(CARGO_TARGET_DIR),target)/debug/registrar

# The development profile: a cold release build takes longer than the demo itself runs.
build := script/bootstrap && cargo build --locked --bin registrar

.PHONY: demo serve test lint bench bench-snapshot soak

# Fill a database with sample data, run every report over HTTP, say where the files are, end.
demo:
	$(build) && $(registrar) demo

# The same, and go on serving: prints the address and a token.
serve:
	$(build) && $(registrar) demo --keep-serving

# Everything that must hold before a commit.
test:
	script/bootstrap && script/test

# Exports against psql, rust_xlsxwriter and Python's libraries; archive and purge against single
# statements, backups against pg_dump, the queue against pgbench, pages with a million executions.
# Writes target/bench.json.
bench:
	script/bootstrap && script/bench

# Executions per second while a backup's snapshot has been open for five minutes against those
# without one; eight minutes. A part of `make bench`.
bench-snapshot:
	script/bootstrap && script/bench-snapshot

# Fifteen minutes of faults at random under load, and the sums at the end. Shorter, or again:
# make soak ARGS="--secs 120 --seed 7"
soak:
	script/bootstrap && script/soak $(ARGS)

# Only the checks that need no database; quick.
lint:
	script/test lint
