-- LOSES which files of the store hold archived rows. The files stay, and so do the rows.
drop table lifecycle_run_exports;
