"""How long a sweep would take on devices that are not there, from the seconds of records."""
