-- Loses every token: clients need new ones.
drop table api_tokens;
