"""The graph of a model as one page: grouped by module, collapsible, coloured by what became of each site."""
