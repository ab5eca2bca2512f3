-- LOSES who is signed in: everybody signs in again.
drop table sign_in_attempts;
drop table console_sessions;
