"""What pages share: the open engine, our own elements, charts and notices."""
