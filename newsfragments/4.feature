Clients and servers that both speak revision 2026-07-28 can use it; an open listen survives a restart. Clients of older revisions can use servers that speak only that one.
