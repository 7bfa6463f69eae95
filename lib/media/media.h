#pragma once
// Media without a codec library: what a source is, how it is cut, what is played, which bytes a
// segment holds. Pure functions over plain data; no I/O, no global state; any thread.
#include "media/cmaf.h"
#include "media/dash.h"
#include "media/decide.h"
#include "media/image.h"
#include "media/mp4file.h"
#include "media/offer.h"
#include "media/plan.h"
#include "media/playlist.h"
#include "media/sniff.h"
#include "media/task.h"
#include "media/texts.h"
#include "media/time.h"
#include "media/webvtt.h"
