package qupath.fx.dialogs

import javafx.scene.control.PasswordField

/** Answers as the scenario says and remembers what was shown. */
class Dialogs {
    static Double downsample
    static String key
    static final List<List<String>> shown = []

    static Double showInputDialog(String title, String message, Double initial) {
        shown << ['input', message]
        return downsample
    }

    static boolean showConfirmDialog(String title, PasswordField field) {
        shown << ['confirm', title]
        field.text = key ?: ''
        return key != null
    }

    static void showErrorMessage(String title, String message) { shown << ['error', message] }

    static void showWarningNotification(String title, String message) { shown << ['warning', message] }

    static void showInfoNotification(String title, String message) { shown << ['info', message] }
}
