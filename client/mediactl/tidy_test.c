#include "tidy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cauce/store.pb-c.h"

static void test_control_characters_of_all_texts_are_shown_as_question_marks(void **state)
{
    (void)state;
    char title[] = "a\x1b[2Jb\tc\x7f",
         description[] = "two\nlines, caf\xc3\xa9 \xc2\x9b"
                         "31m \xc2\xa0",
         page[] = "\r";
    Store__Item item = STORE__ITEM__INIT;
    Store__Item *items[] = {&item};
    Store__ListItemsReply list = STORE__LIST_ITEMS_REPLY__INIT;
    item.title = title;
    item.description = description;
    list.items = items;
    list.n_items = 1;
    list.next_page = page;
    ctl_tidy(&list.base);
    ctl_tidy(NULL);
    assert_string_equal(title, "a?[2Jb?c?");
    assert_string_equal(description, "two\nlines, caf\xc3\xa9 ??31m \xc2\xa0");
    assert_string_equal(page, "?");
    assert_string_equal(item.kind, "");
}

static void test_control_characters_of_one_text_too(void **state)
{
    (void)state;
    char text[] = "// a\x1b]0;title\x07\nline";
    ctl_tidy_text(text);
    ctl_tidy_text(NULL);
    assert_string_equal(text, "// a?]0;title?\nline");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_control_characters_of_all_texts_are_shown_as_question_marks),
        cmocka_unit_test(test_control_characters_of_one_text_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
