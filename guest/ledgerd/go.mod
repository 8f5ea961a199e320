module leeward.dev/guest/ledgerd

go 1.21
