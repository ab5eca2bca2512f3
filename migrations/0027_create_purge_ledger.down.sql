-- LOSES which entries of the erasure ledger runs have noted. The entries stay in the store, and are
-- named by the certificates of their runs.
drop table purge_ledger;
