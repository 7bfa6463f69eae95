#pragma once
// play explain: how an item would be played by a player, and why.
#include "ctl.h"

enum status cmd_play_explain(struct ctl *k) MUST_CHECK;
