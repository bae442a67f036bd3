"""Parts of the published study: its tables, numbers and figures; `jobs.results` puts them together."""
