"""The page of `sa2va-trl app`: clips that it opens, results that it shows and gives out, the page and its server."""
