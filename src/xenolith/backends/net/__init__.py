"""Network devices: the rings of public/io/netif.h, the offloads that packets in them rely on, and a switch."""
