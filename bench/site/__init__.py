"""The documentation as a site (MkDocs): pages made of the registry and of records, links, formulas."""
