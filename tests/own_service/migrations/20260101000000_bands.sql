CREATE TABLE bands (
    id      UUID NOT NULL PRIMARY KEY,
    name    TEXT NOT NULL,
    praised INT  NOT NULL
);
